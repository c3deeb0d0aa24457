"""Prometheus and Grafana: their files are taken by their own checkers, and ask for nothing that is not exported."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from pipeline.driver.progress import FIGURES
from tests.infra.test_infra import INFRA, change, documents

MONITORING = INFRA / "monitoring"
COUNTERS = re.findall(r'"(diffseg_\w+)"', (INFRA.parent / "pipeline" / "cluster" / "metrics.py").read_text())
METRICS = {f"ray_{name}" for name in [*COUNTERS, *(f"diffseg_{name}" for name in FIGURES)]}


def promtool(*arguments):
    """What Prometheus' own checker says of a file; nothing where it is content."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=MONITORING)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def without_kubernetes(config, folder):
    """Debian builds Prometheus without Kubernetes' discovery: that one part is checked here by hand."""
    [job] = [one for one in config["scrape_configs"] if "kubernetes_sd_configs" in one]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["diffseg"]}}]
    shutil.copy(MONITORING / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


def test_prometheus_takes_its_configuration_and_its_rules(tmp_path):
    [config] = documents(MONITORING / "prometheus.yml")
    assert promtool("check", "config", without_kubernetes(config, tmp_path)) == ""
    assert promtool("check", "rules", "alerts.yml") == ""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scrape_configs.0.job_nam", "x"),
        ("scrape_configs.0.metric_relabel_configs.0.regex", "("),
        ("global.scrape_interval", "often"),
    ],
)
def test_an_error_planted_in_the_configuration_of_prometheus_is_seen(path, value, tmp_path):
    [config] = documents(MONITORING / "prometheus.yml")
    assert promtool("check", "config", without_kubernetes(change(config, path, value), tmp_path)) != ""


@pytest.mark.parametrize(("path", "value"), [("0.expr", "sum(rate(x[10m])"), ("0.form", "5m"), ("0.for", "soon")])
def test_an_error_planted_in_a_rule_is_seen(path, value, tmp_path):
    [rules] = documents(MONITORING / "alerts.yml")
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(change(rules, f"groups.0.rules.{path}", value)))
    assert promtool("check", "rules", tmp_path / "alerts.yml") != ""


def test_each_alert_fires_on_a_run_that_deserves_it_and_none_on_one_that_goes_well(tmp_path):
    assert promtool("test", "rules", "alerts_test.yml") == ""
    [rules], [cases] = documents(MONITORING / "alerts.yml"), documents(MONITORING / "alerts_test.yml")
    alerts = {rule["alert"] for rule in rules["groups"][0]["rules"]}
    quiet, loud = cases["tests"]
    assert {case["alertname"] for case in quiet["alert_rule_test"]} == alerts
    [fired] = loud["promql_expr_test"]
    named = [re.search('alertname="(\\w+)"', sample["labels"]) for sample in fired["exp_samples"]]
    assert {match and match[1] for match in named} == alerts

    for name, old, new in [("deaf", "> 5000", "> 9e9"), ("jumpy", "> 5000", "> 50")]:
        folder = tmp_path / name
        shutil.copytree(MONITORING, folder)
        text = (folder / "alerts.yml").read_text()
        (folder / "alerts.yml").write_text(text.replace(old, new))
        assert promtool("test", "rules", folder / "alerts_test.yml") != ""


def dashboard_queries():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


def test_alerts_and_dashboard_ask_only_for_metrics_that_are_exported():
    [rules] = documents(MONITORING / "alerts.yml")
    asked = [rule["expr"] for rule in rules["groups"][0]["rules"]] + [expr for _, expr in dashboard_queries()]
    names = set(re.findall(r"\bray_diffseg_\w+", " ".join(asked)))
    assert names
    assert names <= METRICS


def test_the_runbook_lists_the_metrics_that_are_exported():
    assert set(re.findall(r"\| `(ray_diffseg_\w+)", (INFRA / "README.md").read_text())) == METRICS


def test_the_panels_of_the_dashboard_neither_overlap_nor_lack_what_grafana_wants():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["type"] in ("stat", "timeseries")
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
