"""Rounds of a driver with its workers: orders go out, answers come in, and a worker that ends or hangs is replaced."""

from collections.abc import Mapping
from time import monotonic

from pipeline.driver.pool import Pool
from pipeline.driver.progress import Counters
from pipeline.driver.workers import WorkerHandle, WorkerRegistry
from pipeline.errors import RayLost
from pipeline.messages import EndKind, Orders, Outcome, WorkerEnd
from pipeline.watch import SILENCE_S, Watch
from pipeline.worker.host import Report

STALL_S = 900.0  # seconds without a sample, a byte or a commit after which a worker that has work counts as hung
CAPACITY_S = 2.0  # between two looks at where workers can be
UNNEEDED = WorkerEnd(EndKind.DRAINED, "not needed any more")


class Supervisor:
    """Keeps the workers of a pool as its registry wants them.

    counters: what workers count is added to them. stall_s: seconds after which a worker that has work and
    makes no progress is replaced. silence_s: seconds without an answer from any worker after which the run stops.
    """

    def __init__(self, pool: Pool, counters: Counters, stall_s: float = STALL_S, silence_s: float = SILENCE_S) -> None:
        self.registry = WorkerRegistry(pool.workers)
        self._pool, self._stall_s = pool, stall_s
        self._counters, self._before = counters, (counters.labelled, counters.retries)
        self._watch = Watch(silence_s)
        self._awaited: dict[str, WorkerHandle] = {}  # workers that owe an answer, by name
        self._orders = Orders()  # of the next round
        self._capacity_at = monotonic()

    def round(self) -> list[Outcome]:
        """One exchange with all workers. Returns after a second at most, or later where a private Ray is started again.

        A dead worker is a ShardFailure for each task that it held. Raises RayLost; Stopped where nothing moves;
        NoWorker and WorkerLost where no worker can be started; WouldRepeat, see `WorkerRegistry`.
        """
        with self._watch:
            try:
                self._follow_capacity()
                return self._take(self._pool.exchange(self._next_orders()))
            except RayLost as lost:
                return self._restart(lost)
            finally:
                made, counters = self.registry.made, self._counters
                counters.labelled, counters.retries = self._before[0] + made.rows, self._before[1] + made.retries
                counters.ready_workers = self.registry.ready

    def _follow_capacity(self) -> None:
        """Ask workers to leave whose node is about to go, and take in what the cluster has grown by."""
        if monotonic() < self._capacity_at + CAPACITY_S:
            return
        self._capacity_at = monotonic()
        capacity = self._pool.capacity()
        for handle in self.registry.handles:
            if handle.report.node in capacity.draining and not handle.leaving:
                handle.leaving = True
                self._orders.drain[handle.name] = capacity.draining[handle.report.node]
        for handle in [handle for handle in self.registry.excluded if handle.report.node not in capacity.nodes]:
            self._stop(handle, UNNEEDED)  # its device went with its node: another worker may be started
        self.registry.size = max(self.registry.size, capacity.workers)

    def _next_orders(self) -> Orders:
        for handle in self.registry.surplus():
            self._stop(handle, UNNEEDED)
        self._orders.start = [handle.name for handle in self.registry.start()]
        self._orders.blocked_nodes = frozenset(self.registry.blocked_nodes)
        for handle in self.registry.handles:
            if handle.name not in self._awaited and not handle.excluded:
                self._orders.ask[handle.name] = handle.send()
                self._awaited[handle.name] = handle
        orders, self._orders = self._orders, Orders()
        return orders

    def _take(self, answers: Mapping[str, Report | WorkerEnd]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for name, answer in answers.items():
            self._watch.moved(f"of {name}")
            outcomes += self._take_one(self._awaited.pop(name), answer)
        patience_s = min(self._stall_s, self._watch.silence_s)
        for handle in [handle for handle in self._awaited.values() if handle.is_silent(patience_s)]:
            self._watch.moved(f"the end of {handle.name}, which did not answer")
            outcomes += self._stop(handle, WorkerEnd(EndKind.LOST, "no answer"))
        if not any(handle.held for handle in self._awaited.values()):  # else these are replaced before all is given up
            self._watch.check(
                f"workers asked for: {len(self._awaited)}, ready: {self.registry.ready}, and no answer from any"
            )
        return outcomes

    def _take_one(self, handle: WorkerHandle, answer: Report | WorkerEnd) -> list[Outcome]:
        if isinstance(answer, WorkerEnd):
            return self._stop(handle, answer)
        outcomes = self.registry.update(handle, answer)
        end = answer.end
        if not end and handle.hangs(answer, self._stall_s):
            end = WorkerEnd(EndKind.LOST, f"nothing moved for {answer.still_s:.0f} s")
        return outcomes + self._stop(handle, end) if end else outcomes

    def _stop(self, handle: WorkerHandle, end: WorkerEnd) -> list[Outcome]:
        """A worker is gone, or must go. What it held comes back."""
        self._orders.stop[handle.name] = end.reason
        self._orders.drain.pop(handle.name, None)
        self._awaited.pop(handle.name, None)
        return list(self.registry.stop(handle, end))

    def _restart(self, lost: RayLost) -> list[Outcome]:
        """All workers are gone, and none of them failed. What they held comes back."""
        self._pool.restart(lost)
        self._orders = Orders()
        self._awaited.clear()
        self._watch.moved("a fresh Ray")
        end = WorkerEnd(EndKind.DRAINED, str(lost))
        return [outcome for handle in list(self.registry.handles) for outcome in self.registry.stop(handle, end)]
