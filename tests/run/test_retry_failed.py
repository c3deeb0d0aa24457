"""`label --retry-failed`: windows with failed rows again, under names of their own, and a new declaration."""

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.inputs.shards import pin
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import completed, write_manifest
from pipeline.run.verify import audit
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard


class Unwell(FakeSegmenter):
    """A model that fails on every image."""

    def segment(self, images):
        raise RuntimeError("out of sorts")


@pytest.fixture
def failed(tmp_path):
    """A finished run whose rows all failed."""
    write_shard(tmp_path / "s.tar", samples(10))
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "s.tar")]))
    list(Worker(ledger, Unwell(batch_size=3)).run(ledger.missing()))
    assert write_manifest(ledger, list(audit(ledger))).failed_rows == 10
    return ledger


def test_failed_windows_are_labelled_again_and_every_reader_sees_the_retry(failed):
    pool = LocalPool(lambda: Worker(Ledger.open(failed.store.url), FakeSegmenter(batch_size=3)))
    drive(failed, pool, failed.failed(), Counters())
    pool.close()
    assert {row["status"] for row in failed.rows(["status"])} == {OK}
    assert [window.revision for window in failed.windows()] == [1, 1, 1]
    assert completed(failed, failed.states()) is None
    checked = list(audit(failed, full=True))
    assert checked[0].faults == ()
    assert write_manifest(failed, checked).failed_rows == 0
    totals = completed(failed, failed.states())
    assert totals is not None
    assert totals.failed_rows == 0
    assert failed.failed() == []


def test_a_retry_that_was_interrupted_goes_on_where_it_was(failed):
    tasks = failed.failed()
    list(Worker(failed, FakeSegmenter(batch_size=3)).run(tasks[:1]))
    assert [(t.first_window, t.revision) for t in failed.failed()] == [(1, 1), (2, 1)]
    assert [failed.left_of(task) == [] for task in tasks] == [True, False, False]
