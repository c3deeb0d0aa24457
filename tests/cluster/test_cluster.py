"""A cluster as the manifests start it, in small: head and workers as nodes of their own, the job's entry point given to
`ray job submit`, storage over S3, a node that is told to go and one that dies, Prometheus watching.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from contextlib import contextmanager

import pytest
import yaml

from pipeline.inputs.tar.writing import write_samples
from pipeline.storage.object_store import Store
from tests.conftest import jpeg
from tests.infra.test_infra import INFRA, documents, ray_objects
from tests.infra.test_monitoring import MONITORING, dashboard_queries
from tests.support.processes import servers
from tests.support.processes.clusters import BIN, Cluster, cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SHARDS, IMAGES = 20, 16
WINDOW = 8


def say(line):
    print(line, flush=True)  # noqa: T201 - what was observed goes into the runbook


@pytest.fixture
def place(s3):
    """A prefix with shards, the list of them and a model, as the manifest's entry point wants it."""
    url = f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}"
    store = Store(url)
    names = [f"train-{number:05d}.tar" for number in range(SHARDS)]
    for number, name in enumerate(names):
        images = [(f"{i:04d}", {"jpg": jpeg(i, (320, 240))}) for i in range(number * IMAGES, (number + 1) * IMAGES)]
        store.put_new(name, write_samples(images))
    store.put_new("shards.txt", "\n".join(f"{url}/{name}" for name in names).encode())
    return url


@pytest.fixture(scope="module")
def nodes(s3_proxy):
    """A head and two workers of one CPU each, whose metrics are out before they are killed."""
    often = {"OMP_NUM_THREADS": "1", "RAY_metrics_report_interval_ms": "2000"}
    with cluster({**servers.s3_environment(s3_proxy.address), **often}) as made:
        made.worker()
        made.worker()
        yield made


def entry_point(place, *more):
    """The manifest's, with what it says is to be changed changed."""
    [line] = {one["spec"]["entrypoint"] for one in ray_objects() if one["kind"] == "RayJob"}
    line = line.replace("s3://example-bucket", place).replace("diffseg-job", str(INFRA / "job.sh"), 1)
    line = line.replace("--device gpu --workers 64", "--device cpu --workers 2")
    return [*shlex.split(line), "--window", str(WINDOW), *more]


def windows(place):
    """How many are committed."""
    return sum(name.endswith(".parquet") for name, _ in Store(f"{place}/labels/first/labels").list(""))


def wait_for(condition, job, wait_s=300):
    end = time.monotonic() + wait_s
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_which_exit_codes_survive_the_way_through_ray(nodes: Cluster, code):
    bare = nodes.submit("bash", "-c", f"exit {code}")
    wrapped = nodes.submit(str(INFRA / "job.sh"), "bash", "-c", f"exit {code}")
    say(f"exit {code}: ray job submit ends with {bare.returncode}, through job.sh with {wrapped.returncode}")
    assert bare.returncode == (1 if code else 0)
    assert wrapped.returncode == (1 if code == 143 else 0)
    assert f"diffseg: exit code {code}" in wrapped.stdout + wrapped.stderr


def test_without_the_token_nobody_submits(nodes: Cluster):
    stranger = {**nodes.environment, "RAY_AUTH_TOKEN": "0" * 32}
    command = [str(BIN / "ray"), "job", "submit", f"--address={nodes.jobs}", "--", "true"]
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert re.search("401|403|[Aa]uth", done.stdout + done.stderr)


@contextmanager
def prometheus(nodes: Cluster, folder):
    """Prometheus with the project's configuration, finding nodes by the file that Ray writes; its address."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    [config] = documents(MONITORING / "prometheus.yml")
    config["scrape_configs"] = [one for one in config["scrape_configs"] if one["job_name"] == "file"]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [
        str(nodes.folder / "ray" / "prom_metrics_service_discovery.json")
    ]
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    folder.mkdir()
    shutil.copy(MONITORING / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    [port] = servers.free_ports(1)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with servers.running([*command, f"--web.listen-address=127.0.0.1:{port}"], port, folder) as address:
        yield address


def answers(address, query, since):
    """The numbers that a panel would draw."""
    query = re.sub(r"\$(cluster|owner|run)\b", ".*", query.replace("$__rate_interval", "30s"))
    asked = urllib.parse.urlencode({"query": query, "start": since, "end": time.time(), "step": 2})
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{asked}", timeout=20) as reply:
        series = json.load(reply)["data"]["result"]
    values = [float(value) for one in series for _, value in one["values"]]
    return [value for value in values if math.isfinite(value)]


def labels(address, name, label):
    """Values of a label that were ever seen."""
    asked = urllib.parse.urlencode({"match[]": name})
    with urllib.request.urlopen(f"{address}/api/v1/label/{label}/values?{asked}", timeout=20) as reply:
        return json.load(reply)["data"]


def test_a_run_outlives_a_node_that_is_told_to_go_and_one_that_dies(nodes: Cluster, place, tmp_path):
    fetched = nodes.run("diffseg", "fetch", "tiny", f"{place}/models/sd15")
    say(fetched.stdout.strip())
    _, first, second = nodes.nodes
    with prometheus(nodes, tmp_path / "prometheus") as address:
        since = time.time()
        command = [str(BIN / "ray"), "job", "submit", f"--address={nodes.jobs}", "--", *entry_point(place)]
        job = subprocess.Popen(
            command, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(lambda: windows(place) >= 6, job)

        told = time.monotonic()
        first.terminate()
        first.process.wait(timeout=60)
        log = first.log.read_text()
        say(f"SIGTERM to a node: gone after {time.monotonic() - told:.1f} s, {windows(place)} windows committed")
        assert "received SIGTERM. Draining" in log
        assert "finished draining" in log, log[-2000:]
        nodes.worker()
        before = windows(place)
        wait_for(lambda: windows(place) >= before + 4, job)
        second.kill()
        say(f"SIGKILL to a node: {windows(place)} of {SHARDS * IMAGES // WINDOW} windows committed")

        output, _ = job.communicate(timeout=400)
        say(output[-1500:])
        assert job.returncode == 0
        unanswered = []
        for title, query in dashboard_queries():
            found = answers(address, query, since)
            say(f"{title}: {len(found)} values, last {found[-1]:.4g}" if found else f"{title}: none")
            unanswered += [] if found else [title]
        kinds = set(labels(address, "ray_diffseg_failures_total", "kind"))
        say(f"failures: {sorted(kinds)}")
    assert unanswered == []
    assert kinds == {"Drained", "WorkerLost"}  # who was told to go was not counted as lost
    assert "exit code 0" in output
    verified = nodes.run("diffseg", "verify", f"{place}/labels/first", "--full")
    assert f"verified: {SHARDS * IMAGES} rows" in verified.stdout
