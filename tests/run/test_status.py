"""status: a run seen from storage, whatever its size."""

import json
from time import perf_counter

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.records import Shard
from pipeline.run.layout import window_name
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import write_manifest
from pipeline.run.status import status
from pipeline.run.verify import audit
from pipeline.worker.worker import Worker
from tests.conftest import a_run


def note(ledger, name, **said):
    values = {"at": 1000.0, "left": False, "windows": 0, "rows": 0, "failed": {}, "images_per_s": 0.0, "eta_s": None}
    ledger.store.replace(f"status/{name}.json", json.dumps({**values, "examples": [], **said}).encode())


def test_a_run_that_has_not_begun(ledger):
    seen = status(ledger)
    assert (seen.shards, seen.shards_ended, seen.windows, seen.rows, seen.complete) == (3, 0, 0, 0, False)
    assert seen.bytes_left == seen.bytes_total > 0


def test_a_run_that_is_done(ledger):
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    write_manifest(ledger, list(audit(ledger)))
    seen = status(ledger)
    assert (seen.shards_ended, seen.windows, seen.rows, seen.complete) == (3, 5, 17, True)
    assert seen.rows_exact
    assert seen.bytes_left == 0
    assert seen.output_bytes > 0


def test_drivers_at_work_are_summed_and_old_ones_only_counted(ledger):
    note(ledger, "a", rows=10, windows=2, images_per_s=5.0, eta_s=7.0, failed={"undecodable": 1})
    note(ledger, "b", rows=4, windows=1, images_per_s=2.0, eta_s=9.0)
    note(ledger, "gone", at=100.0, rows=2, windows=1, images_per_s=50.0)
    note(ledger, "left", left=True, rows=1, windows=1, images_per_s=50.0)
    seen = status(ledger, now=lambda: 1010.0)
    assert (seen.drivers, seen.images_per_s, seen.eta_s, seen.rows) == (2, 7.0, 9.0, 17)
    assert seen.failed == {"undecodable": 1}
    assert not seen.rows_exact


@pytest.mark.slow
def test_a_hundred_thousand_windows_are_a_matter_of_seconds(tmp_path, record_property):
    shards = [Shard(f"s-{i:05d}", f"file:///s-{i:05d}.tar", 10, "e") for i in range(1000)]
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
    folder = tmp_path / "run" / "labels"
    folder.mkdir()
    for shard in shards:
        for window in range(100):
            (tmp_path / "run" / window_name(shard.id, window)).touch()
    began = perf_counter()
    seen = status(Ledger.open(ledger.store.url))
    record_property("seconds", perf_counter() - began)
    print(f"status of 100,000 windows on a local disk: {perf_counter() - began:.1f} s")  # noqa: T201
    assert seen.windows == 100_000
