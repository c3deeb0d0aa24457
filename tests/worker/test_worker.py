"""A worker: tasks in, whole windows out, and a row for every sample whatever the model does."""

import gc
import io
import math
import threading
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest
import webdataset

from diffseg.types import AttentionError
from pipeline.bench.fake_model import FakeSegmenter, by_brightness
from pipeline.errors import CommitConflict, StorageError
from pipeline.inputs.decode import decode
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.messages import Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.worker import sample_loader as module
from pipeline.worker.stage_timer import MetricsSnapshot
from pipeline.worker.worker import Worker
from tests.conftest import SEGMENT, a_run, jpeg, samples, write_shard


def rows_of(ledger):
    return list(ledger.rows())


def test_every_sample_of_a_shard_becomes_one_row_in_order(ledger):
    shard = next(iter(ledger.shards.values()))

    outcomes = list(Worker(ledger, FakeSegmenter(batch_size=3)).run([ShardTask(shard)]))

    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt, Receipt, TaskDone]
    assert [outcome.rows for outcome in outcomes if isinstance(outcome, Receipt)] == [4, 4, 2]
    assert outcomes[-1] == TaskDone(ShardTask(shard), 3, ended=True)
    rows = rows_of(ledger)
    assert [(row["index"], row["key"], row["status"]) for row in rows] == [(i, f"{i:04d}", OK) for i in range(10)]
    assert ledger.end(shard.id).rows == 10


def test_a_row_holds_the_labels_of_its_own_image(ledger):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run([ShardTask(shard)]))

    for row in rows_of(ledger):
        expected = by_brightness(decode(jpeg(row["index"])))
        assert np.array_equal(decode_label_map(row["label_map"]), expected.label_map)
        assert row["num_segments"] == 2
        assert [segment["area"] for segment in row["segments"]] == [segment.area for segment in expected.segments]


def test_an_empty_shard_ends_without_windows(ledger):
    empty = list(ledger.shards.values())[2]
    assert [type(o) for o in Worker(ledger, FakeSegmenter()).run([ShardTask(empty)])] == [TaskDone]
    assert ledger.end(empty.id).rows == 0


def test_a_task_in_the_middle_labels_only_its_windows_and_cannot_end_the_shard(ledger):
    shard = next(iter(ledger.shards.values()))

    outcomes = list(Worker(ledger, FakeSegmenter()).run([ShardTask(shard, 1, 1)]))

    assert [row["index"] for row in rows_of(ledger)] == [4, 5, 6, 7]
    assert outcomes[-1] == TaskDone(ShardTask(shard, 1, 1))
    assert ledger.end(shard.id) is None


def test_a_tail_task_ends_the_shard_only_when_the_windows_before_it_are_there(ledger):
    shard = next(iter(ledger.shards.values()))
    worker = Worker(ledger, FakeSegmenter())

    *_, early = worker.run([ShardTask(shard, 2, None)])
    *_, late = worker.run([ShardTask(shard, 0, 1), ShardTask(shard, 3, None)])

    assert isinstance(early, TaskDone)
    assert isinstance(late, TaskDone)
    assert not early.ended
    assert late.ended
    assert ledger.end(shard.id).rows == 10


def test_broken_and_missing_images_get_rows_with_reasons_and_the_rest_is_labelled(tmp_path):
    content = samples(5)
    content[1] = ("broken", {"jpg": content[1][1]["jpg"][:80]})
    content[3] = ("imageless", {"txt": b"no image here"})
    shards = pin([str(write_shard(tmp_path / "odd.tar", content))])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)

    first, *_ = Worker(ledger, FakeSegmenter()).run([ShardTask(shards[0])])

    assert [row["status"] for row in rows_of(ledger)] == [OK, "undecodable", OK, "no_image", OK]
    assert isinstance(first, Receipt)
    assert dict(first.failed) == {"undecodable": 1, "no_image": 1}


class MoodyModel(FakeSegmenter):
    """Refuses images whose dark part is 4 + `bad` wide, in the way it is told to."""

    def __init__(self, bad, error):
        super().__init__(batch_size=4)
        self.bad, self.error = bad, error

    def segment(self, images):
        dark = [int((image.mean((0, 2)) < 128).sum()) - 4 for image in images]
        refused = tuple(place for place, number in enumerate(dark) if number in self.bad)
        if refused:
            raise AttentionError("NaN", refused) if self.error is AttentionError else self.error("no")
        return super().segment(images)


@pytest.mark.parametrize(
    ("error", "status"),
    [(AttentionError, "model_nan"), (RuntimeError, "model_error"), (ZeroDivisionError, "model_error")],
)
def test_samples_the_model_refuses_get_a_reason_and_their_batch_is_labelled_again(ledger, error, status):
    shard = next(iter(ledger.shards.values()))

    list(Worker(ledger, MoodyModel({1, 6}, error)).run([ShardTask(shard)]))

    found = [row["status"] for row in rows_of(ledger)]
    assert [i for i, value in enumerate(found) if value == status] == [1, 6]
    assert found.count(OK) == 8


def test_a_read_that_breaks_off_commits_no_part_of_a_window(ledger, monkeypatch):
    shard = next(iter(ledger.shards.values()))

    def broken(*args, **options):
        for count, sample in enumerate(read_shard(*args, **options)):
            if count == 6:
                raise StorageError("the line went dead")
            yield sample

    monkeypatch.setattr(module, "read_shard", broken)

    outcomes = list(Worker(ledger, FakeSegmenter()).run([ShardTask(shard)]))

    assert [row["index"] for row in rows_of(ledger)] == [0, 1, 2, 3]
    assert isinstance(outcomes[-1], ShardFailure)
    assert outcomes[-1].retryable


def test_damage_keeps_what_came_before_it_and_is_reported(tmp_path):
    path = write_shard(tmp_path / "cut.tar", samples(7))
    path.write_bytes(path.read_bytes()[: 6 * 2048 + 700])  # each sample: two headers, two payloads of one block or two
    shards = pin([str(path)])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)

    *receipts, failure = Worker(ledger, FakeSegmenter()).run([ShardTask(shards[0])])

    assert isinstance(failure, ShardFailure)
    assert failure.kind == "CorruptShard"
    assert not failure.retryable
    rows = rows_of(ledger)
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert sum(receipt.rows for receipt in receipts if isinstance(receipt, Receipt)) == len(rows) >= 4
    assert ledger.end(shards[0].id) is None


def test_a_commit_that_fails_ends_its_task_but_not_the_next(ledger, monkeypatch):
    one, other, _ = ledger.shards.values()
    commit = ledger.writer.commit

    def refusing(task, window, *rest):
        if task.shard == one and window == 1:
            raise CommitConflict("somebody else's labels")
        return commit(task, window, *rest)

    monkeypatch.setattr(ledger.writer, "commit", refusing)
    worker = Worker(ledger, FakeSegmenter())

    outcomes = list(worker.run([ShardTask(one), ShardTask(other)]))

    assert [o.kind for o in outcomes if isinstance(o, ShardFailure)] == ["CommitConflict"]
    assert [o.task.shard for o in outcomes if isinstance(o, TaskDone)] == [other]
    assert not worker.committer.over, "the same task may come again"


def test_outcomes_come_while_the_next_task_is_still_awaited(ledger):
    shard = next(iter(ledger.shards.values()))
    seen = []

    def tasks():
        yield ShardTask(shard)
        assert seen_all.wait(10), "the outcomes of the first task wait for the second"

    seen_all = threading.Event()
    for outcome in Worker(ledger, FakeSegmenter()).run(tasks()):
        seen.append(outcome)
        if isinstance(outcome, TaskDone):
            seen_all.set()
    assert len(seen) == 4


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves its files to the collector
def test_also_webdataset_keeps_keys_images_and_adds_label_maps(tmp_path, shards):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(also=("webdataset",)), shards)
    list(Worker(ledger, FakeSegmenter()).run([ShardTask(shards[0])]))
    tars = sorted(str(path) for path in (tmp_path / "run" / "webdataset").iterdir())

    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    gc.collect()

    rows = rows_of(ledger)
    assert [sample["__key__"] for sample in found] == [row["key"] for row in rows]
    for number, (sample, row) in enumerate(zip(found, rows, strict=True)):
        assert sample["jpg"] == jpeg(number)
        assert sample["txt"] == b"%d" % number
        assert sample["label_map.png"] == row["label_map"]


def test_the_webdataset_tar_of_a_window_is_the_same_whoever_writes_it(tmp_path, shards):
    tars = []
    for name in ("one", "two"):
        ledger = Ledger.start(str(tmp_path / name), a_run(also=("webdataset",)), shards)
        list(Worker(ledger, FakeSegmenter(batch_size=2)).run([ShardTask(shards[1])]))
        tars.append({path.name: path.read_bytes() for path in (tmp_path / name / "webdataset").iterdir()})
    assert tars[0] == tars[1]
    assert all(io.BytesIO(data).read(1) for data in tars[0].values())


@pytest.mark.parametrize(("seconds", "rows"), [(math.inf, 4), (60.0, 4), (0.5, 0)])
def test_a_drained_worker_finishes_the_window_at_hand_where_there_is_time_and_begins_no_other(
    ledger, monkeypatch, seconds, rows
):
    shard = next(iter(ledger.shards.values()))
    worker = Worker(ledger, FakeSegmenter(batch_size=1))
    segment = worker.segmenter.segment

    def draining(images):
        worker.leave(monotonic() + seconds)
        return segment(images)

    monkeypatch.setattr(worker.segmenter, "segment", draining)
    list(worker.run([ShardTask(shard)]))

    assert [row["index"] for row in rows_of(ledger)] == list(range(rows))


def test_windows_that_are_there_are_not_labelled_again(ledger):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, FakeSegmenter()).run([ShardTask(shard, 1, 1)]))
    worker = Worker(Ledger.open(ledger.store.url), FakeSegmenter())

    outcomes = list(worker.run([ShardTask(shard)]))

    assert [o.window for o in outcomes if isinstance(o, Receipt)] == [0, 2]
    assert worker.timer.rows == 6
    assert outcomes[-1] == TaskDone(ShardTask(shard), 3, ended=True)
    assert list(worker.run([ShardTask(shard)])) == [TaskDone(ShardTask(shard), ended=True)]
    assert worker.timer.rows == 6


def test_a_worker_that_meets_another_in_a_shard_leaves_it_the_rest(ledger, monkeypatch):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, FakeSegmenter()).run([ShardTask(shard, 0, 0)]))
    second = Ledger.open(ledger.store.url)
    monkeypatch.setattr(second, "has", lambda task, window: False)  # both began it at the same moment

    *_, receipt, left = Worker(second, FakeSegmenter()).run([ShardTask(shard)])

    assert isinstance(receipt, Receipt)
    assert isinstance(left, ShardFailure)
    assert receipt.wasted
    assert (left.kind, left.retryable, left.task) == ("Overtaken", True, ShardTask(shard))
    assert [row["index"] for row in rows_of(ledger)] == [0, 1, 2, 3]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


def test_a_batch_that_does_not_fit_is_halved_and_remembered(ledger, monkeypatch):
    shard = next(iter(ledger.shards.values()))
    model, tried = FakeSegmenter(batch_size=4), []
    segment = model.segment

    def small_device(images):
        tried.append(len(images))
        if len(images) > 1:
            raise OutOfMemoryError("CUDA out of memory")
        return segment(images)

    monkeypatch.setattr(model, "segment", small_device)
    list(Worker(ledger, model).run([ShardTask(shard)]))

    assert [row["status"] for row in rows_of(ledger)] == [OK] * 10
    assert tried == [4, 2, 1, 1, 2, 1, 1] + [1] * 6


def test_an_image_without_attention_is_named_right_in_a_halved_batch(ledger, monkeypatch):
    shard = next(iter(ledger.shards.values()))
    model = MoodyModel({3}, AttentionError)
    segment = model.segment

    def small_device(images):
        if len(images) > 2:
            raise OutOfMemoryError("CUDA out of memory")
        return segment(images)

    monkeypatch.setattr(model, "segment", small_device)
    list(Worker(ledger, model).run([ShardTask(shard)]))

    assert [row["index"] for row in rows_of(ledger) if row["status"] != OK] == [3]


def test_large_photos_are_decoded_at_a_reduced_scale_only_where_labels_cannot_tell():
    assert module.pixels_wanted(replace(SEGMENT, image_size=512)) == 1024
    assert module.pixels_wanted(replace(SEGMENT, image_size=1024)) == 2048
    assert module.pixels_wanted(replace(SEGMENT, image_size=256, output_size=2000)) == 2000
    assert module.pixels_wanted(replace(SEGMENT, image_size=512, mode="paper")) is None
    assert module.pixels_wanted(replace(SEGMENT, image_size=512, output_size="source")) is None


class Counting(FakeSegmenter):
    """Counts its batches."""

    batches = 0

    def segment(self, images):
        self.batches += 1
        return super().segment(images)


class Windows:
    """A WorkerObserver that keeps what it is told, with the batches that the model had had when a window began."""

    def __init__(self, model: Counting) -> None:
        self._model = model
        self.began: list[tuple[int, int]] = []
        self.committed: list[tuple[int, int]] = []

    def window_began(self, task: ShardTask, number: int) -> None:
        self.began.append((number, self._model.batches))

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        self.committed.append((receipt.window, snapshot.windows))


def test_an_observer_is_told_of_each_window_before_its_first_batch_and_once_it_is_on_storage(ledger):
    shard = next(iter(ledger.shards.values()))
    windows = Windows(model := Counting(batch_size=2))

    list(Worker(ledger, model, observer=windows).run([ShardTask(shard)]))

    assert windows.began == [(0, 0), (1, 2), (2, 4)]
    assert windows.committed == [(0, 1), (1, 2), (2, 3)]


def test_what_an_observer_raises_ends_the_worker_before_the_window_is_labelled(ledger):
    class Refusing(Windows):
        def window_began(self, task: ShardTask, number: int) -> None:
            raise StorageError("the note cannot be written")

    model = Counting()
    with pytest.raises(StorageError, match="the note cannot be written"):
        list(Worker(ledger, model, observer=Refusing(model)).run(ledger.missing()))
    assert model.batches == 0
