"""A worker's time: for which stage it waited, what each stage cost, and counts that add up whichever thread counts."""

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.concurrency import prefetch_map
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.run.ledger import Ledger
from pipeline.worker import sample_loader
from pipeline.worker.stage_timer import Stage, StageTimer
from pipeline.worker.worker import Worker
from tests.conftest import write_shard

LONG = 0.3  # seconds that a stage is slow in these tests; others take a few milliseconds


def worker_of(ledger: Ledger, **speed: float) -> Worker:
    return Worker(ledger, FakeSegmenter(batch_size=2, **speed))


def tasks_of(ledger: Ledger) -> list[ShardTask]:
    return [ShardTask(shard) for shard in ledger.shards.values()]


def largest(worker: Worker) -> str:
    waited = worker.timer.snapshot().waited_s
    return max(waited, key=lambda stage: waited[stage])


def test_rows_and_windows_are_counted_and_failed_ones_by_their_reason(ledger, shards, tmp_path):
    worker = worker_of(ledger)
    list(worker.run(tasks_of(ledger)))
    reading = worker.timer.snapshot()
    assert (reading.images, reading.windows) == ({"ok": 17}, 3 + 2)

    broken = write_shard(tmp_path / "in" / "broken.tar", [("a", {"jpg": b"none"}), ("b", {"txt": b""})])
    assert broken.exists()
    other = Ledger.start(str(tmp_path / "other"), ledger.run, pin([str(broken)]))
    worker = worker_of(other)
    list(worker.run(tasks_of(other)))
    assert worker.timer.snapshot().images == {"undecodable": 1, "no_image": 1}


def test_labelling_is_busy_time(ledger):
    worker = worker_of(ledger, seconds=0.01)
    list(worker.run(tasks_of(ledger)))
    assert worker.timer.snapshot().busy_s >= 17 * 0.01


def test_waiting_for_the_first_task_is_waiting_for_a_task(ledger):
    def late() -> Iterator[ShardTask]:
        time.sleep(LONG)
        yield from tasks_of(ledger)

    worker = worker_of(ledger)
    list(worker.run(late()))
    assert largest(worker) == "task"


def test_waiting_for_storage_is_waiting_for_read(ledger, monkeypatch):
    def slow(*arguments, **options):
        time.sleep(LONG)
        yield from read_shard(*arguments, **options)

    monkeypatch.setattr(sample_loader, "read_shard", slow)
    worker = worker_of(ledger)
    list(worker.run(tasks_of(ledger)))
    assert largest(worker) == "read"


def test_waiting_for_pixels_is_waiting_for_decode(ledger, monkeypatch):
    def slow(*arguments):
        time.sleep(0.05)
        return decode_sample(*arguments)

    monkeypatch.setattr(sample_loader, "decode_sample", slow)
    worker = worker_of(ledger)
    worker.loader.threads = 1
    list(worker.run(tasks_of(ledger)))
    assert largest(worker) == "decode"


def test_waiting_for_storage_to_take_windows_is_waiting_for_commit(ledger, monkeypatch):
    worker = worker_of(ledger)
    real = worker.committer.commit

    def slow(work):
        time.sleep(LONG)
        return real(work)

    monkeypatch.setattr(worker.committer, "commit", slow)
    list(worker.run(tasks_of(ledger)))
    assert largest(worker) == "commit"


def test_a_task_that_comes_while_labelling_goes_on_costs_no_waiting():
    """The reader without a task matters only where the labelling thread waits for what it would bring."""
    timer = StageTimer()
    tasks = timer.handed(iter([1]))
    reader = threading.Thread(target=lambda: list(tasks))
    reader.start()
    reader.join()
    assert sum(timer.snapshot().waited_s.values()) == 0


def test_a_reader_that_is_past_its_tasks_keeps_nobody_waiting_for_one():
    timer = StageTimer()
    assert list(timer.handed([])) == []
    with timer.waiting(Stage.READ):
        time.sleep(0.02)
    waited = timer.snapshot().waited_s
    assert waited["task"] == 0.0 < waited["read"]


def test_counts_of_many_threads_are_all_there():
    timer = StageTimer()

    def count() -> None:
        for _ in range(1000):
            timer.row("ok")
            timer.busy(1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (timer.snapshot().images, timer.snapshot().busy_s) == ({"ok": 4000}, 4000.0)


def test_work_counts_for_its_stage_on_whatever_thread_and_waiting_costs_nothing():
    timer = StageTimer()

    def work(stage: Stage, seconds: float) -> None:
        with timer.working(stage):
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                pass
            time.sleep(LONG)

    work(Stage.LABEL, 0.05)
    threads = [threading.Thread(target=work, args=(Stage.DECODE, 0.05), name="label") for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu_s = timer.snapshot().cpu_s
    assert 0.05 <= cpu_s["label"] < LONG
    assert 0.1 <= cpu_s["decode"] < 2 * LONG
    assert cpu_s["read"] == cpu_s["encode"] == cpu_s["commit"] == 0.0


def test_items_that_are_worked_through_cost_their_making_and_what_is_done_with_them():
    timer = StageTimer()
    for item in timer.working_through(Stage.READ, "ab"):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        assert timer.snapshot().cpu_s["read"] == pytest.approx(0.02 if item == "b" else 0.0, abs=0.01)
    assert timer.snapshot().cpu_s["read"] >= 0.04


def test_waiting_ends_where_the_block_raises():
    timer = StageTimer()

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("storage")

    results = prefetch_map(lambda x: x, broken(), depth=1, empty=partial(timer.waiting, Stage.READ))
    assert next(results) == 1
    with pytest.raises(ValueError, match="storage"):
        next(results)
    assert timer.snapshot().waited_s["read"] >= 0
