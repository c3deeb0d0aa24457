"""One big shard for several workers: every window once, whoever labels it."""

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.inputs.shards import pin
from pipeline.inputs.tasks import split
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.ledger import Ledger
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard


@pytest.fixture
def ledger(tmp_path):
    write_shard(tmp_path / "in/s-0.tar", samples(82))
    return Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "in/s-0.tar")]))


def ranges(tasks):
    return [(task.first_window, task.last_window) for task in tasks]


def test_a_shard_is_shared_by_workers_that_would_be_idle(ledger):
    shared = ranges(split(ledger.missing(), 4, 4))
    assert len(shared) == 4
    assert shared[0][0] == 0
    assert shared[-1][1] is None
    assert [last + 1 for _, last in shared[:-1]] == [first for first, _ in shared[1:]]


def test_nothing_is_shared_where_every_worker_has_a_task(ledger):
    assert list(split(ledger.missing(), 1, 4)) == ledger.missing()


def test_what_is_closed_compressed_or_small_stays_whole(ledger):
    shard = next(iter(ledger.shards.values()))
    closed = ShardTask(shard, 3, 5)
    packed = ShardTask(Shard("p", "file:///p.tar.gz", 10, "e"))
    gone = ShardTask(Shard("g", "file:///gone.tar", 10, "e"))
    assert list(split([closed, packed, gone], 9, 4)) == [closed, packed, gone]
    assert ranges(split([ShardTask(shard)], 9, 1000)) == [(0, None)]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_a_shard_labelled_in_pieces_is_complete(tmp_path, ledger, window):
    shards = list(ledger.shards.values())
    ledger = Ledger.start(str(tmp_path / f"run-{window}"), a_run(window=window), shards)
    pool = LocalPool(lambda: Worker(Ledger.open(ledger.store.url), FakeSegmenter(batch_size=3)), workers=3)
    drive(ledger, pool, split(ledger.missing(), 3, window), Counters())
    pool.close()
    assert ledger.missing() == []
    assert sorted(row["index"] for row in ledger.rows()) == list(range(82))
    assert ledger.end(shards[0].id).rows == 82
