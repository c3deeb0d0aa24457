"""Poison: samples that kill their worker are found, named and outlived; deaths from outside name nobody."""

import threading
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.poison import PoisonDetector
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import WorkerLost
from pipeline.inputs.shards import pin
from pipeline.messages import Heartbeat, Probe, ShardTask
from pipeline.records import OK, Shard
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard

SHARD = Shard("s", "file:///s.tar", 1, "e")


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 64),
    poison=st.sets(st.integers(0, 63), max_size=3),
    outside=st.lists(st.booleans(), max_size=12),
)
def test_the_search_names_the_poison_and_nothing_else_within_its_bound(count, poison, outside):
    poison = {index for index in poison if index < count}
    suspects, deaths, from_outside = PoisonDetector(64), 0, iter(outside)

    while True:
        [task] = suspects.split(ShardTask(SHARD, 0, 0))
        if task.probe is None:
            if not poison and not next(from_outside, False):
                break
            deaths += 1
            suspects.record_death([Heartbeat("s", 0, 0, 63)])
            continue
        for piece in task.probe.pieces(range(count)):
            struck = next(from_outside, False)
            if struck or poison & set(piece):
                deaths += 1
                suspects.record_death([Heartbeat("s", 0, piece[0], piece[-1], probed=True)])
                break
        else:
            assert set(task.probe.poison) >= poison
            assert set(task.probe.poison) - poison == set() or any(outside)
            break

    assert deaths <= (4 + log2(64)) * max(1, len(poison)) + 4 * len(outside)
    if not outside:
        assert deaths <= (4 + log2(64)) * len(poison)


def test_one_death_makes_nobody_suspect_and_two_set_the_window_apart():
    suspects = PoisonDetector(4)
    task = ShardTask(SHARD, 0, None)
    suspects.record_death([Heartbeat("s", 2, 8, 9)])
    assert list(suspects.split(task)) == [task]
    suspects.record_death([Heartbeat("s", 2, 9, 10)])
    assert [(t.first_window, t.last_window, t.probe) for t in suspects.split(task)] == [
        (0, 1, None),
        (2, 2, Probe(8, 11)),
        (3, None, None),
    ]
    suspects.forget("s", 2)
    assert list(suspects.split(task)) == [task]


def test_a_probe_touches_the_suspect_half_by_half_and_every_sample_once_but_the_poison():
    assert list(Probe(4, 7, (5,)).pieces(range(10))) == [[4, 6], [7], [0, 1, 2, 3], [8, 9]]
    assert list(Probe(6, 6).pieces(range(8))) == [[6], [0, 1, 2, 3, 4, 5], [7]]


def number_of(image):
    """The number a test photo was made with."""
    return int((image.mean((0, 2)) < 128).sum()) - 4


class Deadly(FakeSegmenter):
    """Dies of some photos, in the way it is told to."""

    def __init__(self, deadly, die):
        super().__init__(batch_size=3)
        self.deadly, self.die = deadly, die

    def segment(self, images):
        for image in images:
            if number_of(image) in self.deadly:
                self.die()
        return super().segment(images)


def raising():
    raise WorkerLost("the process is gone")


def statuses(ledger):
    return {row["index"]: row["status"] for row in ledger.rows()}


@pytest.fixture
def wide(tmp_path):
    """A run over one shard of 16 samples, eight a window."""
    shard = write_shard(tmp_path / "in" / "w.tar", samples(16))
    return Ledger.start(str(tmp_path / "run"), a_run(window=8), pin([str(shard)]))


@pytest.mark.parametrize("deadly", [{0}, {7}, {5, 6}, {3, 11}])
def test_samples_that_kill_their_worker_become_poison_rows_and_all_others_are_labelled(wide, tmp_path, deadly):
    pool = LocalPool(lambda: Worker(Ledger.open(wide.store.url), Deadly(deadly, raising)))
    counters = Counters()
    drive(wide, pool, wide.missing(), counters)
    pool.close()

    assert [fault for shard in audit(wide, full=True) for fault in shard.faults] == []
    assert statuses(wide) == {i: "poison" if i in deadly else OK for i in range(16)}
    assert counters.lost_workers <= (4 + log2(8)) * len(deadly)
    kept = {path.name.split(".")[1]: path for path in (tmp_path / "run" / "failures").glob("*.poison.jpg")}
    assert set(kept) == {f"{index:08d}" for index in deadly}


def test_a_sample_that_hangs_is_found_too(wide):
    forever = threading.Event()
    build = lambda: Worker(Ledger.open(wide.store.url), Deadly({4}, lambda: forever.wait(120)))  # noqa: E731
    pool = LocalPool(build)
    drive(wide, pool, wide.missing(), Counters(), stall_s=0.5)
    forever.set()
    pool.close()
    assert statuses(wide) == {i: "poison" if i == 4 else OK for i in range(16)}
