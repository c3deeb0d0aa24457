"""The schedule decides which task is handed out next, and what happens to each task that comes back.

It is a state machine without storage, processes or a clock of its own. `next` gives a task, `record` takes an outcome
and returns actions: `CheckStorage` (find what of a task is missing on storage, and tell `requeue`) and `Quarantine`. It
raises Stopped where another attempt would not help.
"""

from array import array
from collections import Counter, deque
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random
from typing import TypeAlias, TypeVar

from pipeline.driver.backoff import delay_s
from pipeline.driver.poison import PoisonDetector
from pipeline.driver.progress import Counters
from pipeline.errors import AlreadyCommitted, CommitConflict, ConfigError, Drained, Stopped, StorageFull, WorkerLost
from pipeline.messages import Heartbeat, Outcome, Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.run.shard_index import ShardIndex

T = TypeVar("T")
DEATHS_IN_A_ROW = 40  # without a window between them, over what all workers dying at once explains: something is wrong
REFUSALS = 3  # tasks in a row, and no window between them: storage refuses the run, not one shard
FIRST_DELAY_S = 1.0  # before a task that failed, or met another driver, is handed out again


@dataclass(frozen=True, slots=True)
class CheckStorage:
    """Find the windows that are missing of a task, or of its whole shard.

    heartbeats: the last ones of the worker that died with the task. delay_s: seconds before the missing windows are
    handed out again.
    """

    task: ShardTask
    whole: bool = False
    heartbeats: tuple[Heartbeat, ...] = ()
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Record a failure: its task is not tried again."""

    failure: ShardFailure


Action: TypeAlias = CheckStorage | Quarantine


class Schedule:
    """The tasks of a driver.

    shards: all that tasks may be of. window: samples in a window. counters: kept up to date. max_attempts: of a task
    that commits no window between them. rng: decides the order of tasks, which should differ between drivers of a run.
    """

    def __init__(
        self, shards: ShardIndex, window: int, counters: Counters, max_attempts: int = 3, rng: Random | None = None
    ) -> None:
        self._counters, self._max_attempts = counters, max_attempts
        self._poison = PoisonDetector(window)
        self._queue = Queue(shards, rng or Random())
        self._out: Counter[str] = Counter()  # tasks by shard that workers hold, or that are being looked up
        self._progressed: set[str] = set()  # shards with a window since their last failure
        self._met: Counter[str] = Counter()  # how often another driver was met in a shard
        self._deaths, self._most = 0, 0  # in a row; tasks that were ever out at once
        self._refused = 0  # tasks in a row

    @property
    def unfinished(self) -> int:
        """Tasks that are not over: queued, held by workers, or being looked up on storage."""
        return len(self._queue) + self._out.total()

    def add(self, tasks: Iterable[ShardTask], due: float = 0.0) -> None:
        """Queue tasks, each suspect window as a task of its own. due: none is handed out before."""
        for task in tasks:
            for part in self._poison.split(task):
                self._queue.put(part, due)

    def next(self, free: int, idle: int, now: float) -> ShardTask | None:
        """The next task. free: how many more tasks the workers can take; idle: workers that hold none, for probes."""
        task = self._queue.take(free, idle, now)
        if task is not None:
            self._out[task.shard.id] += 1
            self._most = max(self._most, self._out.total())
        return task

    def record(self, outcome: Outcome) -> list[Action]:
        """Take an outcome of a task that was handed out."""
        match outcome:
            case Receipt(shard=shard):
                self._counters.add(outcome)
                self._progressed.add(shard)
                self._poison.forget(shard, outcome.window)
                self._deaths = 0
                return []
            case TaskDone(task=task):
                self._deaths = 0
                return self._close(task) if outcome.ended else self._check_end(task)
            case ShardFailure():
                self._counters.failures[outcome.kind] += 1
                return self._record_failure(outcome)

    def _record_failure(self, failure: ShardFailure) -> list[Action]:
        task, shard = failure.task, failure.task.shard.id
        match failure.kind:
            case StorageFull.kind | Stopped.kind:
                raise Stopped(failure.error)
            case ConfigError.kind if self._refused >= REFUSALS - 1:
                raise Stopped(failure.error)
            case Drained.kind:
                return [CheckStorage(task)]
            case AlreadyCommitted.kind:
                self._met[shard] += 1
                return [CheckStorage(task, delay_s=delay_s(FIRST_DELAY_S, self._met[shard]))]
            case WorkerLost.kind:
                if failure.heartbeats:
                    self._counters.lost_workers += 1
                    self._deaths += 1
                if self._deaths > DEATHS_IN_A_ROW + self._most:
                    raise Stopped(f"{self._deaths} workers died in a row, the last: {failure.error}")
                return [CheckStorage(task, heartbeats=failure.heartbeats)]
            case _:
                self._refused += failure.kind == ConfigError.kind
                return self._retry_or_quarantine(failure)

    def _retry_or_quarantine(self, failure: ShardFailure) -> list[Action]:
        task, shard = failure.task, failure.task.shard.id
        fresh = replace(task, attempt=0) if shard in self._progressed else task
        self._progressed.discard(shard)
        if failure.retryable and fresh.attempt < self._max_attempts:
            self._counters.retried_tasks += 1
            again = replace(fresh, attempt=fresh.attempt + 1)
            return [CheckStorage(again, delay_s=delay_s(FIRST_DELAY_S, fresh.attempt))]
        return [*self._close(task), Quarantine(failure)]

    def requeue(self, check: CheckStorage, missing: list[ShardTask], now: float) -> list[Action]:
        """Queue the windows that a check of storage has found missing."""
        if check.heartbeats:
            # the worker may have begun the next window of its task after its last heartbeat
            begun = [Heartbeat(task.shard.id, task.first_window, 0, 0) for task in missing[:1] if not task.probe]
            self._poison.record_death([*begun, *check.heartbeats])
        empty = [task for task in missing if check.whole and _within(task, check.task)]
        self.add((task for task in missing if task not in empty), now + check.delay_s if check.delay_s else 0.0)
        if empty:
            windows = f"window {empty[0].first_window} to {empty[0].last_window}"
            error = f"{windows}: the shard has no samples for them, yet an object that stands in labels/ says so"
            failure = ShardFailure(empty[0], CommitConflict.kind, error, retryable=False)
            return [*self._close(check.task), Quarantine(failure)]
        whole = check.whole or check.task.last_window is None  # then nothing missing means that the end record is there
        return self._close(check.task) if missing or whole else self._check_end(check.task)

    def _check_end(self, task: ShardTask) -> list[Action]:
        """A part of a shard is on storage. After its last part, the end record may still be missing."""
        shard = task.shard.id
        if self._out[shard] > 1 or self._queue.holds(shard):
            return self._close(task)
        return [CheckStorage(task, whole=True)]

    def _close(self, task: ShardTask) -> list[Action]:
        shard = task.shard.id
        self._out[shard] -= 1
        if not self._out[shard]:
            del self._out[shard]
            if not self._queue.holds(shard):
                self._progressed.discard(shard)
                self._counters.close(shard)
        return []


def _within(task: ShardTask, read: ShardTask) -> bool:
    """Whether the windows that are missing were read already: their samples do not exist, and never will."""
    first, last = task.first_window, task.last_window
    return last is not None and last >= read.first_window and (read.last_window is None or first <= read.last_window)


class Queue:
    """Tasks that are still to be handed out: probes to idle workers first, the rest in random order, when it is due."""

    def __init__(self, shards: ShardIndex, rng: Random) -> None:
        self._shards, self._rng = shards, rng
        self._fresh = array("L")  # numbers of shards that are whole and were never tried: most of a run
        self._tasks: list[ShardTask] = []
        self._probes: deque[ShardTask] = deque()
        self._later: list[tuple[float, int, ShardTask]] = []  # a heap, by when they are due
        self._parts: Counter[str] = Counter()  # tasks of each shard, the fresh ones left out
        self._seen = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._tasks) + len(self._probes) + len(self._later)

    def put(self, task: ShardTask, due: float) -> None:
        """Add a task. due: seconds on the driver's clock before which it is not handed out; 0: at once."""
        if not due and task == ShardTask(task.shard):
            self._fresh.append(self._shards.position(task.shard.id))
            return
        self._parts[task.shard.id] += 1
        if task.probe:
            self._probes.append(task)
        elif due:
            self._seen += 1
            heappush(self._later, (due, self._seen, task))
        else:
            self._tasks.append(task)

    def take(self, free: int, idle: int, now: float) -> ShardTask | None:
        """Remove a task that a worker can take now; None where no task is due or no worker is free."""
        task: ShardTask | None = None
        if self._probes and idle > 0:
            task = self._probes.popleft()
        elif self._tasks and free > 0:
            task = self._pop_random(self._tasks)
        elif self._later and free > 0 and not self._fresh and self._later[0][0] <= now:
            task = heappop(self._later)[2]
        if task is not None:
            self._parts[task.shard.id] -= 1
            if not self._parts[task.shard.id]:
                del self._parts[task.shard.id]
        elif free > 0 and self._fresh:
            task = ShardTask(self._shards.at(self._pop_random(self._fresh)))
        return task

    def _pop_random(self, items: MutableSequence[T]) -> T:
        """Remove a random item in constant time: the last one takes its place."""
        index = self._rng.randrange(len(items))
        items[index], items[-1] = items[-1], items[index]
        return items.pop()

    def holds(self, shard: str) -> bool:
        """Whether a task of a shard is queued, by its id; a shard that was never handed out does not count."""
        return shard in self._parts
