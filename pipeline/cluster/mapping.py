"""One function over many items, on the CPUs of a cluster."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle

from pipeline.cluster.messages import EXCHANGE_S
from pipeline.errors import RayLost, WorkerLost
from pipeline.watch import Watch

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")
TASK_RETRIES = 3  # of an item whose process died: nothing that is computed here is committed twice
logger = logging.getLogger(__name__)


def map_on_cluster(cluster: "Cluster", function: Callable[[T], R], items: Iterable[T], room: int) -> Iterator[R]:
    """function(item) for every item, in order; at most `room` items are out at once. See `Cluster.map`."""
    work = _Work(cluster, function)
    try:
        for item in items:
            if len(work) >= room:
                yield work.first()
            work.hand_over(item)
        while len(work):
            yield work.first()
    finally:
        work.cancel()


class _Work:
    """The items that were handed over and are not yet given back."""

    def __init__(self, cluster: "Cluster", function: Callable[[Any], Any]) -> None:
        self._cluster, self._watch = cluster, Watch(cluster.silence_s)
        self._function: bytes = cloudpickle.dumps(function)
        self._turn, self._next = 0, 0  # numbers of the first item that is not given back, and of the next one
        self._out: dict[int, bytes] = {}  # without a result: a fresh Ray is given them again
        self._fresh: dict[int, bytes] = {}  # of these, those it has not been given yet
        self._came: dict[int, bytes] = {}
        self._deaths: Counter[int] = Counter()
        self._knows = False  # the function

    def __len__(self) -> int:
        return self._next - self._turn

    def hand_over(self, item: Any) -> None:
        """One more."""
        self._out[self._next] = self._fresh[self._next] = cloudpickle.dumps(item)
        self._next += 1
        self._round(0.0)

    def first(self) -> Any:
        """The result whose turn it is, once it is there."""
        while self._turn not in self._came:
            self._round(EXCHANGE_S)
        good, result = pickle.loads(self._came.pop(self._turn))
        self._turn += 1
        if not good:
            raise result
        return result

    def _round(self, wait_s: float) -> None:
        with self._watch:
            self._exchange(wait_s)

    def _exchange(self, wait_s: float) -> None:
        try:
            if not self._knows:
                self._cluster.call("function", self._function)
            found = self._cluster.call("results", self._fresh, wait_s)
            if any(isinstance(said, str) for said in found.values()):
                self._cluster.check_soon()
        except RayLost as lost:
            self._cluster.restart(lost)
            self._knows, self._fresh = False, dict(self._out)
            return
        self._knows, self._fresh = True, {}
        for number, said in found.items():
            self._watch.moved(f"item {number}")
            if isinstance(said, bytes):
                self._came[number] = said
                del self._out[number]
            elif said is not None:
                self._died(number, said)
        self._watch.check(f"{len(self._out)} items are out, and no process is at work on any")

    def _died(self, number: int, reason: str) -> None:
        logger.warning("the process of item %d ended: %s", number, reason)
        self._deaths[number] += 1
        if self._deaths[number] > TASK_RETRIES:
            raise WorkerLost(reason)
        self._fresh[number] = self._out[number]

    def cancel(self) -> None:
        """Nobody wants the rest."""
        if self._out:
            with suppress(RayLost):
                self._cluster.call("cancel")
