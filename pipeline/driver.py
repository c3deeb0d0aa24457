"""The driver: one loop over what happens, and every fate of a task on one screen.

It holds no state that matters: after its death the same command reads the run from storage and goes on.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline import breaker
from pipeline.errors import Drained, Stopped, StorageFull, WorkerLost
from pipeline.ledger import Ledger
from pipeline.pool import Pool
from pipeline.records import Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.tally import Tally


def drive(
    ledger: Ledger,
    pool: Pool,
    tasks: Iterable[ShardTask],
    tally: Tally,
    *,
    max_attempts: int = 3,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Have every task done, or given up with a record of why.

    A task that comes back unfinished is cut down to the windows that are still missing; it counts as another attempt
    only where none of its windows came in since the last. tally: kept up to date, so that a caller who is interrupted
    knows as much. tick: called at least once a second.
    Raises Stopped where storage is full or the labels are worthless, PipelineError where no worker can start.
    """
    pending = deque(tasks)
    in_flight: Counter[str] = Counter()  # tasks by shard
    progressed: set[str] = set()  # shards with a window since their last failure

    while pending or in_flight.total():
        while pending and pool.free() > 0:
            task = pending.popleft()
            in_flight[task.shard.id] += 1
            pool.submit(task)
        for outcome in pool.wait():
            match outcome:
                case Receipt():
                    tally.note(outcome)
                    breaker.check(tally)
                    progressed.add(outcome.shard)
                case TaskDone(task=task):
                    in_flight[task.shard.id] -= 1
                    if not outcome.ended and not in_flight[task.shard.id] and not _waiting(pending, task):
                        pending.extend(ledger.missing_of(task.shard))
                case ShardFailure(kind=StorageFull.__name__):
                    raise Stopped(outcome.error)
                case ShardFailure(kind=Drained.__name__, task=task):
                    in_flight[task.shard.id] -= 1
                    pending.extend(ledger.left_of(task))
                case ShardFailure(task=task):
                    in_flight[task.shard.id] -= 1
                    tally.lost_workers += outcome.kind == WorkerLost.__name__
                    fresh = replace(task, attempt=0) if task.shard.id in progressed else task
                    progressed.discard(task.shard.id)
                    if outcome.retryable and fresh.attempt < max_attempts:
                        tally.retried_tasks += 1
                        pending.extend(ledger.left_of(fresh.retry()))
                    else:
                        _give_up(ledger, tally, outcome)
        tick()


def _waiting(pending: Iterable[ShardTask], task: ShardTask) -> bool:
    return any(other.shard.id == task.shard.id for other in pending)


def _give_up(ledger: Ledger, tally: Tally, failure: ShardFailure) -> None:
    shard = failure.task.shard
    tally.broken[shard.id] = failure
    said = {"shard": shard.id, "url": shard.url, "kind": failure.kind, "error": failure.error, "offset": failure.offset}
    ledger.record_failure(shard.id, said | {"attempts": failure.task.attempt})
