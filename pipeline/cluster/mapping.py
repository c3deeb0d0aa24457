"""A parallel map on the CPUs of a cluster."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle

from pipeline.cluster.messages import EXCHANGE_S
from pipeline.errors import RayLost, WorkerLost
from pipeline.logs.context import current
from pipeline.logs.records import replay
from pipeline.watch import Watch

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")
TASK_RETRIES = 3  # of an item whose process died: nothing that is computed here is committed twice
logger = logging.getLogger(__name__)


def map_on_cluster(cluster: "Cluster", function: Callable[[T], R], items: Iterable[T], room: int) -> Iterator[R]:
    """function(item) for every item, in order. room: items that may be pending at once. See `Cluster.map`."""
    work = _Work(cluster, function)
    try:
        for item in items:
            if len(work) >= room:
                yield work.first()
            work.add(item)
        while len(work):
            yield work.first()
    finally:
        work.cancel()


class _Work:
    """The items whose results were not returned yet."""

    def __init__(self, cluster: "Cluster", function: Callable[[Any], Any]) -> None:
        self._cluster, self._watch = cluster, Watch(cluster.silence_s)
        self._function: bytes = cloudpickle.dumps(function)
        self._first, self._next = 0, 0  # numbers of the item whose result is returned next, and of the next item
        self._pending: dict[int, bytes] = {}  # items without a result: a Ray that is started again gets them again
        self._unsent: dict[int, bytes] = {}  # of these, items that Ray has not got yet
        self._results: dict[int, bytes] = {}
        self._deaths: Counter[int] = Counter()
        self._has_function = False

    def __len__(self) -> int:
        return self._next - self._first

    def add(self, item: Any) -> None:
        """Add an item."""
        self._pending[self._next] = self._unsent[self._next] = cloudpickle.dumps(item)
        self._next += 1
        self._round(0.0)

    def first(self) -> Any:
        """Wait for the next result in order, and return it."""
        while self._first not in self._results:
            self._round(EXCHANGE_S)
        succeeded, result, log = pickle.loads(self._results.pop(self._first))
        replay(log, **current().labels)
        self._first += 1
        if not succeeded:
            raise result
        return result

    def _round(self, wait_s: float) -> None:
        with self._watch:
            try:
                if not self._has_function:
                    self._cluster.call("function", self._function)
                answers = self._cluster.call("results", self._unsent, wait_s)
                if any(isinstance(answer, str) for answer in answers.values()):
                    self._cluster.check_soon()
            except RayLost as lost:
                self._cluster.restart(lost)
                self._has_function, self._unsent = False, dict(self._pending)
                return
            self._has_function, self._unsent = True, {}
            for number, answer in answers.items():
                self._watch.moved(f"item {number}")
                if isinstance(answer, bytes):
                    self._results[number] = answer
                    del self._pending[number]
                elif answer is not None:
                    logger.warning("the process of item %d ended: %s", number, answer)
                    self._deaths[number] += 1
                    if self._deaths[number] > TASK_RETRIES:
                        raise WorkerLost(answer)
                    self._unsent[number] = self._pending[number]
            self._watch.check(f"{len(self._pending)} items are out, and no process is at work on any")

    def cancel(self) -> None:
        """End the computation of all pending items."""
        if self._pending:
            with suppress(RayLost):
                self._cluster.call("cancel")
