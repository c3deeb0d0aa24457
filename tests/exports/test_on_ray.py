"""Exports and derived tables on a real Ray: the bytes of those that are written here."""

from dataclasses import replace

import pytest

from pipeline.categories import categorise
from pipeline.cluster import Cluster
from pipeline.concurrency import map_here
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError, ShardChanged
from pipeline.exports import export as hub
from pipeline.exports.export import export
from tests.categories.materials import material_run
from tests.exports.test_export import content
from tests.support.labelled import make_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("kind", ["coco-segments", "huggingface", "webdataset"])
def test_an_export_on_ray_is_the_one_made_here(tmp_path, cluster, monkeypatch, kind):
    monkeypatch.setitem(hub.FORMATS, kind, replace(hub.FORMATS[kind], part=4))
    ledger = make_run(tmp_path, [[f"{shard}{i}" for i in range(12)] for shard in "abc"])
    selection = Selection(where="quality > 0.15", split=0.5)
    here = export(ledger, str(tmp_path / "here"), kind, selection)

    there = export(ledger, str(tmp_path / "there"), kind, selection, parallel_map=cluster.map)

    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert there.state == here.state
    assert there.state.parts == 9


def test_categories_on_ray_are_the_ones_made_here(tmp_path, cluster):
    ledger = material_run(tmp_path)
    for name, parallel_map in (("here", map_here), ("there", cluster.map)):
        categorise.cluster(ledger, 4, name, "diffseg categories", 0, 0.01, parallel_map)
    here, there = (
        {name.rpartition("/")[2]: ledger.store.get(name) for name, _ in ledger.store.list(f"derived/{table}/")}
        for table in ("here", "there")
    )
    assert here == there
    assert len(here) == 2


def test_errors_arrive_as_what_they_are(tmp_path, cluster):
    ledger = make_run(tmp_path)
    (tmp_path / "in" / "s-1.tar").write_bytes(b"something else")

    with pytest.raises(ShardChanged, match=r"s-1\.tar"):
        export(ledger, str(tmp_path / "out"), "png", Selection(), parallel_map=cluster.map)
    with pytest.raises(ConfigError, match="another export"):
        export(ledger, str(tmp_path / "out"), "png", Selection(limit=1), parallel_map=cluster.map)
