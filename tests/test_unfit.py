"""A worker whose device computes wrongly gets no work: the reference image finds it, and its labels are in no run."""

import numpy as np
import pytest
from conftest import a_run

from diffseg.types import AttentionError, Segmentation
from pipeline import reference
from pipeline.audit import audit
from pipeline.driver import drive
from pipeline.errors import Unfit
from pipeline.faults import FakeSegmenter
from pipeline.ledger import Ledger
from pipeline.pool import LocalPool
from pipeline.tally import Tally
from pipeline.worker import Worker


class Broken(FakeSegmenter):
    """Labels that come from nowhere."""

    def segment(self, images):
        random = np.random.default_rng(1)
        return [Segmentation(random.integers(0, 9, image.shape[:2]).astype(np.int32), (), 1.0) for image in images]


class Rounding(FakeSegmenter):
    """The labels of other hardware: borders a pixel off."""

    def segment(self, images):
        return [
            Segmentation(np.roll(result.label_map, 1, 0), result.segments, 1.0) for result in super().segment(images)
        ]


class Empty(FakeSegmenter):
    """A model whose attention is no number."""

    def segment(self, images):
        raise AttentionError("NaN", tuple(range(len(images))))


def test_the_first_worker_makes_the_reference_and_its_like_agree(ledger):
    for _ in range(2):
        reference.check(ledger, FakeSegmenter())
    assert ledger.store.exists(reference.REFERENCE)
    reference.check(ledger, Rounding())


@pytest.mark.parametrize(("first", "second"), [(FakeSegmenter, Broken), (FakeSegmenter, Empty), (Empty, FakeSegmenter)])
def test_a_worker_that_computes_otherwise_is_unfit(ledger, first, second):
    reference.check(ledger, first())
    with pytest.raises(Unfit, match=r"cover \d+% of .*/reference.png"):
        reference.check(ledger, second())


def test_workers_without_any_attention_agree_so_that_the_breaker_can_judge(ledger):
    reference.check(ledger, Empty())
    reference.check(ledger, Empty())


def test_an_unfit_worker_labels_nothing_and_the_run_ends_complete(shards, tmp_path):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
    reference.check(ledger, FakeSegmenter())
    made = []

    def build():
        worker = Worker(ledger, Broken() if len(made) == 1 else FakeSegmenter(0.01))
        made.append(worker)
        reference.check(ledger, worker.segmenter)
        return worker

    pool = LocalPool(build, workers=3)
    drive(ledger, pool, ledger.unfinished(), Tally())
    pool.close()

    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert [desk.left_out for desk in pool.staff.desks].count(True) == 1
    assert all(row["num_segments"] == 2 for row in ledger.rows())
    assert len(made) == 3
