"""What is written of the code is what the code says, and every link leads somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "infra" / "docs"
PACKAGES = (path for layer in ("diffseg", "pipeline", "jobs") for path in (ROOT / layer).rglob("README.md"))
WRITTEN = (
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    *sorted((ROOT / "infra").rglob("*.md")),
    *sorted(PACKAGES),
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module(name):
    """A script of infra/docs."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def links(path):
    """Relative links of a page, without those in code, and without anchors."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    targets = (link.partition("#")[0] for link in LINK.findall(text))
    return [target for target in targets if target and not re.match(r"\w+:", target)]


@pytest.mark.parametrize("script", ["tables", "graph"])
def test_what_is_made_from_the_code_is_up_to_date(script):
    stale = [name_of(path) for path, text in module(script).documents() if path.read_text() != text]

    assert not stale, f"python infra/docs/{script}.py"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8 << 10


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_links_lead_to_files(path):
    lost = [target for target in links(path) if not (path.parent / target).exists()]

    assert not lost


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md#c), ![d](e.svg), [f](https://g.h), [i](#j), `[k](l.md)`\n```\n[m](n.md)\n```\n")

    assert links(page) == ["b.md", "e.svg"]


def test_every_page_stands_in_the_site_and_nothing_else_does():
    def places(entry):
        if isinstance(entry, str):
            return [entry]
        return [place for part in (entry.values() if isinstance(entry, dict) else entry) for place in places(part)]

    pytest.importorskip("mkdocs")
    shown = places(yaml.safe_load((DOCS / "mkdocs.yml").read_text())["nav"])

    assert sorted(shown) == sorted(place for place in module("pages").pages().values() if place.endswith(".md"))


def test_a_cycle_and_an_import_upwards_are_measured():
    graph = module("graph")
    low, *_, high = graph.ORDER
    planted = {room: set() for room in graph.ORDER} | {low: {high}, high: {low}}

    found = graph.measures(planted)

    assert "Imports upwards: 1." in found
    assert f"Cycles: {low}, {high}." in found
    assert graph.circles(graph.edges()) == []


def test_forms_and_workflows_are_yaml_that_calls_what_is_there():
    found = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github").rglob("*.yml")}
    steps = [step.get("run", "") for step in found["ci.yml"]["jobs"]["ci"]["steps"]]

    assert ".ci/run" in steps
    assert "make docs" in steps
    assert "\ndocs:" in (ROOT / "Makefile").read_text()
    for name in ("bug.yml", "feature.yml"):
        assert {"name", "description", "body"} <= found[name].keys()
        ids = [field["id"] for field in found[name]["body"]]
        assert len(ids) == len(set(ids)) > 0
