"""The order in which tasks are handed out."""

from array import array
from collections import Counter, deque
from collections.abc import MutableSequence
from heapq import heappop, heappush
from random import Random
from typing import TypeVar

from pipeline.messages import ShardTask
from pipeline.run.shard_index import ShardIndex

T = TypeVar("T")


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
