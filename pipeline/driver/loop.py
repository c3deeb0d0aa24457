"""The driver: the loop between a schedule, the workers and storage.

It holds no state that matters: after its death the same command reads the run from storage and goes on.
"""

from collections.abc import Callable, Iterable
from time import monotonic

from pipeline.driver import circuit_breaker
from pipeline.driver.failures import FailureLog
from pipeline.driver.pool import Pool
from pipeline.driver.progress import Counters
from pipeline.driver.schedule import CheckStorage, Quarantine, Schedule
from pipeline.messages import ShardFailure, ShardTask
from pipeline.run.ledger import Ledger


def drive(
    ledger: Ledger,
    pool: Pool,
    tasks: Iterable[ShardTask],
    tally: Counters,
    *,
    max_attempts: int = 3,
    finish: bool = True,
    tick: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = monotonic,
) -> None:
    """Have every task done, or given up with a record of why.

    A task that comes back unfinished is cut down to the windows that are still missing. A failure counts as another
    attempt only where none of its windows came in since the last; a lost worker never does, and tells `PoisonDetector`.
    finish: windows of these shards that no task names are labelled too, so that every shard is read to its end.
    tally: kept up to date, so that a caller who is interrupted knows as much. tick: called at least once a second.
    Raises Stopped where storage is full, the labels are worthless or workers keep dying, PipelineError where none can
    start.
    """
    schedule = Schedule(ledger.shards, ledger.run.window, tally, max_attempts)
    schedule.add(tasks)
    failures = FailureLog(ledger)
    while schedule.unfinished:
        while task := schedule.next(pool.staff.free(), pool.staff.idle(), clock()):
            pool.staff.submit(task)
        pool.staff.want(schedule.unfinished)
        for outcome in pool.wait():
            if isinstance(outcome, ShardFailure):
                failures.failed(outcome)
            actions = schedule.note(outcome)
            while actions:
                match actions.pop(0):
                    case CheckStorage() as look:
                        actions += schedule.looked(look, _left(ledger, look, finish), clock())
                    case Quarantine(failure=failure):
                        tally.broken[failure.task.shard.id] = failure
                        failures.given_up(failure)
        circuit_breaker.check(pool.staff.made)
        tick()


def _left(ledger: Ledger, look: CheckStorage, finish: bool) -> list[ShardTask]:
    if look.whole:
        return ledger.missing_of(look.task.shard) if finish else []
    return ledger.left_of(look.task)
