"""What is done next, and what becomes of every task that comes back: every fate of a task on one screen.

A state machine without storage, processes or a clock of its own. It hands out tasks (`next`), is told of outcomes
(`note`) and answers with what it must know or have done: `CheckStorage` (what of a task is still missing on storage;
the answer goes to `looked`) and `Quarantine`. It raises Stopped where going on would only burn money.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

from pipeline.driver.backoff import delay_s
from pipeline.driver.poison import PoisonDetector
from pipeline.driver.progress import Counters
from pipeline.driver.queue import Queue
from pipeline.errors import FailureKind, Stopped
from pipeline.messages import Heartbeat, Outcome, Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.run.shard_index import ShardIndex

DEATHS_IN_A_ROW = 40  # without a window between them, over what all workers dying at once explains: something is wrong
FIRST_DELAY_S = 1.0  # before a task that failed, or met another driver, is handed out again


@dataclass(frozen=True, slots=True)
class CheckStorage:
    """What is still missing of a task, or of its whole shard? heartbeats: a worker died with this in hand.
    delay_s: before what is left is handed out again.
    """

    task: ShardTask
    whole: bool = False
    heartbeats: tuple[Heartbeat, ...] = ()
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The task will not be tried again; its failure is to be recorded."""

    failure: ShardFailure


Action: TypeAlias = CheckStorage | Quarantine


class Schedule:
    """The state of a driver. shards: that tasks are of; window: samples; max_attempts: of a task without a window
    coming in; rng: the order of tasks, which every driver of a run should have for itself.

    tally: kept up to date, so that a caller who is interrupted knows as much.
    """

    def __init__(
        self, shards: ShardIndex, window: int, tally: Counters, max_attempts: int = 3, rng: Random | None = None
    ) -> None:
        self._tally, self._max_attempts = tally, max_attempts
        self._suspects = PoisonDetector(window)
        self._queue = Queue(shards, rng or Random())
        self._out: Counter[str] = Counter()  # tasks by shard that are with workers, or about which storage is asked
        self._progressed: set[str] = set()  # shards with a window since their last failure
        self._met: Counter[str] = Counter()  # how often another driver was met in a shard
        self._deaths, self._most = 0, 0  # in a row; tasks that were ever out at once

    @property
    def unfinished(self) -> int:
        """Tasks that are not over: queued, with workers, or being looked at."""
        return len(self._queue) + self._out.total()

    def add(self, tasks: Iterable[ShardTask], due: float = 0.0) -> None:
        """Take tasks in, suspect windows apart; none is handed out before it is due."""
        for task in tasks:
            for part in self._suspects.split(task):
                self._queue.put(part, due)

    def next(self, free: int, idle: int, now: float) -> ShardTask | None:
        """A task to hand over. free: how many the workers can take; idle: workers without one, as probes need."""
        task = self._queue.take(free, idle, now)
        if task is not None:
            self._out[task.shard.id] += 1
            self._most = max(self._most, self._out.total())
        return task

    def note(self, outcome: Outcome) -> list[Action]:
        """An outcome of a task that is out."""
        match outcome:
            case Receipt(shard=shard):
                self._tally.note(outcome)
                self._progressed.add(shard)
                self._suspects.forget(shard, outcome.window)
                self._deaths = 0
                return []
            case TaskDone(task=task):
                self._deaths = 0
                return self._over(task) if outcome.ended else self._read(task)
            case ShardFailure():
                self._tally.failures[outcome.kind] += 1
                return self._failed(outcome)

    def _failed(self, failure: ShardFailure) -> list[Action]:
        task, shard = failure.task, failure.task.shard.id
        match failure.kind:
            case FailureKind.STORAGE_FULL:
                raise Stopped(failure.error)
            case FailureKind.DRAINED:
                return [CheckStorage(task)]
            case FailureKind.ALREADY_COMMITTED:
                self._met[shard] += 1
                return [CheckStorage(task, delay_s=delay_s(FIRST_DELAY_S, self._met[shard]))]
            case FailureKind.WORKER_LOST:
                if failure.heartbeats:
                    self._tally.lost_workers += 1
                    self._deaths += 1
                if self._deaths > DEATHS_IN_A_ROW + self._most:
                    raise Stopped(f"{self._deaths} workers died in a row, the last: {failure.error}")
                return [CheckStorage(task, heartbeats=failure.heartbeats)]
        fresh = replace(task, attempt=0) if shard in self._progressed else task
        self._progressed.discard(shard)
        if failure.retryable and fresh.attempt < self._max_attempts:
            self._tally.retried_tasks += 1
            return [CheckStorage(fresh.retry(), delay_s=delay_s(FIRST_DELAY_S, fresh.attempt))]
        return [*self._over(task), Quarantine(failure)]

    def looked(self, look: CheckStorage, left: list[ShardTask], now: float) -> list[Action]:
        """What storage answered: it goes back to the queue."""
        if look.heartbeats:
            self._suspects.died([*_first_of(left), *look.heartbeats])
        empty = [task for task in left if look.whole and _within(task, look.task)]
        self.add((task for task in left if task not in empty), now + look.delay_s if look.delay_s else 0.0)
        if empty:
            return [*self._over(look.task), Quarantine(_nothing_there(empty[0]))]
        whole = look.whole or look.task.last_window is None  # then nothing left means that the end record is there
        return self._over(look.task) if left or whole else self._read(look.task)

    def _read(self, task: ShardTask) -> list[Action]:
        """A part is on storage. Where it was the last of its shard, the end record is still to be made."""
        shard = task.shard.id
        if self._out[shard] > 1 or self._queue.holds(shard):
            return self._over(task)
        return [CheckStorage(task, whole=True)]

    def _over(self, task: ShardTask) -> list[Action]:
        shard = task.shard.id
        self._out[shard] -= 1
        if not self._out[shard]:
            del self._out[shard]
            if not self._queue.holds(shard):
                self._progressed.discard(shard)
                self._tally.closed(shard)
        return []


def _within(task: ShardTask, read: ShardTask) -> bool:
    """Whether windows are missing that a task came upon no samples for: it would do so for ever."""
    first, last = task.first_window, task.last_window
    return last is not None and last >= read.first_window and (read.last_window is None or first <= read.last_window)


def _nothing_there(task: ShardTask) -> ShardFailure:
    said = f"window {task.first_window} to {task.last_window}: the shard has no samples for them, yet an object that "
    return ShardFailure(task, FailureKind.COMMIT_CONFLICT, f"{said}stands in labels/ says so", retryable=False)


def _first_of(left: list[ShardTask]) -> list[Heartbeat]:
    """The window that a task would have come to next: in hand for all that the last heartbeat could not know yet."""
    return [Heartbeat(task.shard.id, task.first_window, 0, 0) for task in left[:1] if not task.probe]
