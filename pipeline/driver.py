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
from pipeline.records import Beat, Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.suspects import Suspects
from pipeline.tally import Tally

DEATHS_IN_A_ROW = 40  # without a window between them, over what all workers dying at once explains: something is wrong


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

    A task that comes back unfinished is cut down to the windows that are still missing. A failure counts as another
    attempt only where none of its windows came in since the last; a lost worker never does, and tells `Suspects`.
    tally: kept up to date, so that a caller who is interrupted knows as much. tick: called at least once a second.
    Raises Stopped where storage is full, the labels are worthless or workers keep dying, PipelineError where none can
    start.
    """
    suspects = Suspects(ledger.run.window)
    queue = Queue(suspects)
    queue.add(tasks)
    in_flight: Counter[str] = Counter()  # tasks by shard
    progressed: set[str] = set()  # shards with a window since their last failure
    deaths, most = 0, 0  # in a row; tasks that were ever in flight at once

    while queue or in_flight.total():
        while task := queue.next(pool):
            in_flight[task.shard.id] += 1
            pool.submit(task)
        most = max(most, in_flight.total())
        for outcome in pool.wait():
            if isinstance(outcome, ShardFailure):
                tally.failures[outcome.kind] += 1
            match outcome:
                case Receipt(shard=shard):
                    tally.note(outcome)
                    breaker.check(tally)
                    progressed.add(shard)
                    suspects.forget(shard, outcome.window)
                    deaths = 0
                case TaskDone(task=task):
                    deaths = 0
                    in_flight[task.shard.id] -= 1
                    if not outcome.ended and not in_flight[task.shard.id] and not queue.holds(task.shard.id):
                        queue.add(ledger.missing_of(task.shard))
                case ShardFailure(kind=StorageFull.__name__):
                    raise Stopped(outcome.error)
                case ShardFailure(kind=Drained.__name__, task=task):
                    in_flight[task.shard.id] -= 1
                    queue.add(ledger.left_of(task))
                case ShardFailure(kind=WorkerLost.__name__, task=task):
                    in_flight[task.shard.id] -= 1
                    left = ledger.left_of(task)
                    if outcome.beats:
                        tally.lost_workers += 1
                        deaths += 1
                        suspects.died([*_first_of(left), *outcome.beats])
                    if deaths > DEATHS_IN_A_ROW + most:
                        raise Stopped(f"{deaths} workers died in a row, the last: {outcome.error}")
                    queue.add(left)
                case ShardFailure(task=task):
                    in_flight[task.shard.id] -= 1
                    fresh = replace(task, attempt=0) if task.shard.id in progressed else task
                    progressed.discard(task.shard.id)
                    if outcome.retryable and fresh.attempt < max_attempts:
                        tally.retried_tasks += 1
                        queue.add(ledger.left_of(fresh.retry()))
                    else:
                        _give_up(ledger, tally, outcome)
        tick()


class Queue:
    """What is still to be handed over: probes to idle workers first, the rest in order."""

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        self._tasks: deque[ShardTask] = deque()
        self._probes: deque[ShardTask] = deque()

    def __bool__(self) -> bool:
        return bool(self._tasks or self._probes)

    def add(self, tasks: Iterable[ShardTask]) -> None:
        """Put tasks at the end, suspect windows apart."""
        for task in tasks:
            for part in self._suspects.split(task):
                (self._probes if part.probe else self._tasks).append(part)

    def next(self, pool: Pool) -> ShardTask | None:
        """What a worker can take now; None where nothing is left or nobody is free."""
        if self._probes and pool.idle() > 0:
            return self._probes.popleft()
        return self._tasks.popleft() if self._tasks and pool.free() > 0 else None

    def holds(self, shard: str) -> bool:
        """Whether something of a shard is still to come."""
        return any(task.shard.id == shard for task in (*self._tasks, *self._probes))


def _first_of(left: list[ShardTask]) -> list[Beat]:
    """The window that a task would have come to next: in hand for all that the last heartbeat could not know yet."""
    return [Beat(task.shard.id, task.first_window, 0, 0) for task in left[:1] if not task.probe]


def _give_up(ledger: Ledger, tally: Tally, failure: ShardFailure) -> None:
    shard = failure.task.shard
    tally.broken[shard.id] = failure
    said = {"shard": shard.id, "url": shard.url, "kind": failure.kind, "error": failure.error, "offset": failure.offset}
    ledger.record_failure(shard.id, said | {"attempts": failure.task.attempt})
