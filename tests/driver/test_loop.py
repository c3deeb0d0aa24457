"""The driver: one loop that ends, with every window on storage or a record of why not."""

import itertools
import random
import threading
from collections import Counter

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import Capacity, LocalPool
from pipeline.driver.progress import Counters
from pipeline.driver.workers import WorkerHandle
from pipeline.errors import CorruptShard, Drained, PipelineError, Stopped, StorageError, StorageFull, WorkerLost
from pipeline.messages import Heartbeat, Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker.host import Report
from pipeline.worker.worker import Worker


class ScriptedPool:
    """One worker that does tasks at once, but first lets a script spoil them.

    script: what becomes of the n-th task handed over, by n; None or absent: it is done.
    """

    workers = 1

    def __init__(self, ledger, script):
        self.worker, self.script, self.count = Worker(ledger, FakeSegmenter()), script, 0

    def capacity(self):
        return Capacity(1)

    def exchange(self, orders):
        return {name: Report(tuple(self.outcomes(tasks)), ready=True) for name, tasks in orders.ask.items()}

    def outcomes(self, tasks):
        for task in tasks:
            self.count += 1
            spoil = self.script(self.count, task) if callable(self.script) else self.script.get(self.count)
            if spoil is None:
                yield from self.worker.run([task])
            elif spoil == "half":  # the first window is committed, then the worker dies
                yield from [o for o in self.worker.run([task]) if isinstance(o, Receipt)][:1]
                yield ShardFailure(task, StorageError.kind, "cut off", retryable=True)
            else:
                yield ShardFailure(task, *spoil)

    def restart(self, lost):
        raise lost

    def close(self):
        pass


def quick():
    """A clock on which a minute passes whenever it is looked at."""
    return itertools.count(step=60).__next__


CUT_OFF = (StorageError.kind, "the line went dead", True)


def complete(ledger):
    return [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []


def test_all_shards_are_done_once(ledger):
    counters = Counters()
    drive(ledger, ScriptedPool(ledger, {}), ledger.missing(), counters)
    assert complete(ledger)
    assert (counters.rows, counters.windows, counters.retried_tasks) == (17, 5, 0)
    assert Counter((row["shard"], row["index"]) for row in ledger.rows()).most_common(1)[0][1] == 1


@pytest.mark.parametrize(("losses", "given_up"), [(0, 0), (2, 0), (3, 1)])
def test_a_task_is_tried_again_until_attempts_run_out(ledger, losses, given_up):
    first = next(iter(ledger.shards.values()))
    left = [losses]

    def script(count, task):
        if task.shard == first and left[0]:
            left[0] -= 1
            return CUT_OFF
        return None

    counters = Counters()
    drive(ledger, ScriptedPool(ledger, script), ledger.missing(), counters, max_attempts=3, clock=quick())

    assert len(counters.broken) == given_up
    assert complete(ledger) == (not given_up)


def test_failures_with_progress_between_them_never_exhaust_the_attempts(ledger):
    first = next(iter(ledger.shards.values()))
    counters = Counters()
    script = lambda count, task: "half" if task.shard == first and task.first_window < 2 else None  # noqa: E731

    pool = ScriptedPool(ledger, script)
    pool.worker.ledger = ledger
    drive(ledger, pool, ledger.missing(), counters, max_attempts=1, clock=quick())

    assert complete(ledger)
    assert not counters.broken


def test_a_drained_worker_costs_no_attempt(ledger):
    counters = Counters()
    script = dict.fromkeys(range(1, 8), (Drained.kind, "spot notice", True))
    drive(ledger, ScriptedPool(ledger, script), ledger.missing(), counters, max_attempts=1)
    assert complete(ledger)


def test_workers_may_be_lost_again_and_again_if_windows_come_in_between(ledger):
    chance = random.Random(3)
    counters, lost = Counters(), (WorkerLost.kind, "killed", True, None, (Heartbeat("elsewhere", 0, 0, 0),))
    script = lambda count, task: lost if chance.random() < 0.6 else None  # noqa: E731
    drive(ledger, ScriptedPool(ledger, script), ledger.missing(), counters, max_attempts=1)
    assert complete(ledger)
    assert counters.lost_workers > 3
    assert not counters.failed


def test_workers_that_only_die_stop_the_run(ledger):
    always = (WorkerLost.kind, "killed by the machine", True, None, (Heartbeat("elsewhere", 0, 0, 0),))
    with pytest.raises(Stopped, match="workers died in a row, the last: killed by the machine"):
        drive(ledger, ScriptedPool(ledger, lambda count, task: always), ledger.missing(), Counters())


def test_what_cannot_be_retried_is_given_up_at_once_with_a_record(ledger, tmp_path):
    pool = ScriptedPool(ledger, {1: (CorruptShard.kind, "damaged header", False, 512)})
    counters = Counters()
    drive(ledger, pool, ledger.missing(), counters)
    assert [failure.error for failure in counters.broken.values()] == ["damaged header"]
    assert len(list((tmp_path / "run" / "failures").iterdir())) == 1


def test_full_storage_stops_the_run(ledger):
    pool = ScriptedPool(ledger, {1: (StorageFull.kind, "no space left", False)})
    with pytest.raises(Stopped, match="no space left"):
        drive(ledger, pool, ledger.missing(), Counters())


def test_windows_of_one_shard_may_come_in_any_order(ledger):
    shard = next(iter(ledger.shards.values()))
    others = [task for task in ledger.missing() if task.shard != shard]
    tasks = [ShardTask(shard, 2, None), ShardTask(shard, 0, 0), ShardTask(shard, 1, 1), *others]
    drive(ledger, ScriptedPool(ledger, {}), tasks, Counters())
    assert complete(ledger)


def test_a_retry_is_cut_to_the_windows_that_are_missing(ledger):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, FakeSegmenter()).run([ShardTask(shard, 1, 1)]))
    whole, middle = ShardTask(shard, attempt=2), ShardTask(shard, 1, 1)
    assert [(t.first_window, t.last_window, t.attempt) for t in ledger.left_of(whole)] == [
        (0, 0, 2),
        (2, None, 2),
    ]
    assert ledger.left_of(middle) == []


def test_workers_in_threads_do_the_same(ledger, build):
    pool, counters = LocalPool(build, workers=2), Counters()
    drive(ledger, pool, ledger.missing(), counters)
    pool.close()
    assert complete(ledger)
    assert counters.labelled == 17


def test_a_worker_that_dies_is_replaced_and_its_tasks_come_back(ledger, build):
    made = []

    def dying(images):
        raise WorkerLost("the device fell off the bus")

    def mortal():
        worker = build()
        made.append(worker)
        if len(made) <= 2:
            worker.segmenter.segment = dying
        return worker

    pool, counters = LocalPool(mortal), Counters()
    drive(ledger, pool, ledger.missing(), counters, max_attempts=5)
    pool.close()

    assert complete(ledger)
    assert len(made) == 3
    assert counters.lost_workers >= 2


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_reason(ledger):
    def doomed():
        raise PipelineError("no such model")

    with pytest.raises(WorkerLost, match="no worker can start: no such model"):
        drive(ledger, LocalPool(doomed), ledger.missing(), Counters())


def test_a_receipt_of_another_attempt_counts_as_waste_not_as_rows():
    counters = Counters()
    counters.add(Receipt("s", 0, 4, (), 100, 0.1))
    counters.add(Receipt("s", 0, 4, (), 100, 0.1, wasted=True))
    assert (counters.rows, counters.windows, counters.wasted_windows) == (4, 1, 1)


def test_a_shard_whose_end_is_missing_is_read_again(ledger):
    shard = next(iter(ledger.shards.values()))
    assert isinstance(Ledger.open(ledger.store.url).missing()[0], ShardTask)
    *_, done = Worker(ledger, FakeSegmenter()).run([ShardTask(shard, 0, 2)])
    assert done == TaskDone(ShardTask(shard, 0, 2))
    drive(ledger, ScriptedPool(ledger, {}), ledger.missing(), Counters())
    assert complete(ledger)


def test_a_worker_that_hangs_is_replaced_and_its_windows_are_made_elsewhere(ledger, build):
    made, release = [], threading.Event()

    def hanging():
        worker = build()
        made.append(worker)
        if len(made) == 1:
            worker.segmenter.segment = lambda images: release.wait(60)
        return worker

    pool, counters = LocalPool(hanging), Counters()
    drive(ledger, pool, ledger.missing(), counters, stall_s=1.0)
    release.set()
    pool.close()

    assert complete(ledger)
    assert counters.lost_workers >= 1
    assert len(made) == 2


def test_a_worker_without_work_never_counts_as_hung(build):
    handle = WorkerHandle("idle")
    assert not handle.hangs(Report(ready=True, still_s=1e9), stall_s=1.0)
