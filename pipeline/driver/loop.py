"""The driver: the loop between a schedule, the workers and storage.

It holds no state that matters: after its death the same command reads the run from storage and continues.
"""

from collections.abc import Callable, Iterable
from time import monotonic

from pipeline.driver import circuit_breaker
from pipeline.driver.failures import FailureLog
from pipeline.driver.pool import Pool
from pipeline.driver.progress import Counters
from pipeline.driver.schedule import CheckStorage, Quarantine, Schedule
from pipeline.driver.supervisor import STALL_S, Supervisor
from pipeline.errors import under_way
from pipeline.messages import ShardFailure, ShardTask
from pipeline.run.ledger import Ledger
from pipeline.watch import SILENCE_S


def drive(
    ledger: Ledger,
    pool: Pool,
    tasks: Iterable[ShardTask],
    counters: Counters,
    *,
    max_attempts: int = 3,
    finish: bool = True,
    stall_s: float = STALL_S,
    silence_s: float = SILENCE_S,
    tick: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = monotonic,
) -> None:
    """Have every task done, or given up with a record of why.

    A task that comes back unfinished is cut down to the windows that are still missing. A failure counts as another
    attempt only where none of its windows came in since the last; a lost worker never does, and tells `PoisonDetector`.
    finish: windows of these shards that no task names are labelled too, so that every shard is read to its end.
    stall_s, silence_s: seconds, see `Supervisor`. counters: kept up to date, so that a caller who is interrupted knows
    as much. tick: called at least once a second.
    Raises Stopped where storage is full, the labels are worthless or workers keep dying, PipelineError where none can
    start.
    """
    schedule = Schedule(ledger.shards, ledger.run.window, counters, max_attempts)
    schedule.add(tasks)
    failures = FailureLog(ledger)
    supervisor = Supervisor(pool, counters, stall_s, silence_s)
    registry = supervisor.registry
    while schedule.unfinished:
        while task := schedule.next(registry.free(), registry.idle(), clock()):
            registry.submit(task)
        registry.wanted = schedule.unfinished
        for outcome in supervisor.round():
            if isinstance(outcome, ShardFailure):
                failures.failed(outcome)
            actions = schedule.record(outcome)
            while actions:
                with under_way():
                    match actions.pop(0):
                        case CheckStorage(task=task, whole=False) as check:
                            actions += schedule.requeue(check, ledger.left_of(task), clock())
                        case CheckStorage(task=task) as check:
                            actions += schedule.requeue(check, ledger.missing_of(task.shard) if finish else [], clock())
                        case Quarantine(failure=failure):
                            counters.broken[failure.task.shard.id] = failure
                            failures.given_up(failure)
        circuit_breaker.check(registry.made, failures.last_end)
        tick()
