"""The driver's registry of workers: what each of them holds, how many there should be, where none is started again."""

import logging
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from time import monotonic

from pipeline.driver.backoff import delay_s
from pipeline.errors import Drained, NoWorker, WorkerLost, WouldRepeat
from pipeline.logs.context import bound
from pipeline.logs.records import replay
from pipeline.messages import EndKind, Heartbeat, Outcome, ShardFailure, ShardTask, TaskDone, WorkerEnd
from pipeline.worker.host import Report
from pipeline.worker.stage_timer import MetricsSnapshot

TASKS_AHEAD = 2  # a worker: one being labelled, the next being fetched
PROBE_STALL_S = 120.0  # seconds without progress while a window is searched for the sample that hangs
IDLE_S = 20.0  # seconds after which a worker that nothing is left for gives its device back
MAX_FALSE_STARTS = 3  # workers that end before they are ready, none having been: the machine or the model is at fault
MAX_LATE_STARTS = 10  # the same in a row, when some were ready before and none is now
FAILURES_TO_BLOCK = 4  # workers that end in a row on one node without a sample labelled: no other is started there
FIRST_DELAY_S = 0.5  # before a worker takes the place of one that was not ready
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """The driver's view of one worker."""

    name: str
    held: list[ShardTask] = field(default_factory=list)
    unsent: list[ShardTask] = field(default_factory=list)
    report: Report = field(default_factory=Report)  # its last answer
    leaving: bool = False  # it was asked to
    excluded: bool = False  # its labels differ from the run's, or it shares its device with another: it gets no work
    asked_at: float = field(default_factory=monotonic)  # when the answer that is awaited was asked for
    busy_at: float = field(default_factory=monotonic)  # when it last had something to do

    def hangs(self, report: Report, stall_s: float) -> bool:
        """Whether it has work, or loads its model, and has not moved for too long."""
        return (bool(self.held) or not report.ready) and report.still_s > self._patience_s(stall_s)

    def is_silent(self, stall_s: float) -> bool:
        """Whether it has work and has not answered for too long."""
        return bool(self.held) and monotonic() - self.asked_at > self._patience_s(stall_s)

    def _patience_s(self, stall_s: float) -> float:
        return min(stall_s, PROBE_STALL_S) if self.probing() else stall_s

    def probing(self) -> bool:
        """Whether it searches a window for poison: it gets no other task, since its process may die."""
        return any(task.probe for task in self.held)

    def free(self) -> int:
        """How many more tasks it may hold: none before it is ready, so that no task waits for a device to appear."""
        if not self.report.ready or self.leaving or self.excluded or self.probing():
            return 0
        return TASKS_AHEAD - len(self.held)

    def give(self, task: ShardTask) -> None:
        """Assign a task; it goes out with the next question."""
        self.held.append(task)
        self.unsent.append(task)

    def send(self) -> list[ShardTask]:
        """Take the tasks that go out with a question asked now."""
        sent, self.unsent = self.unsent, []
        self.asked_at = monotonic()
        return sent

    def update(self, report: Report) -> list[Outcome]:
        """Take an answer in. Tasks that are over are held no more."""
        replay(report.log, worker=self.name, node=report.node)
        self.report = report
        if self.held or not report.ready:
            self.busy_at = monotonic()
        for outcome in report.outcomes:
            if isinstance(outcome, (TaskDone, ShardFailure)):
                self.held.remove(outcome.task)
        return list(report.outcomes)

    def fail(self, end: WorkerEnd) -> list[ShardFailure]:
        """Give up the tasks it held. The first one of a dead worker has its last heartbeats, or where it began."""
        lost, self.held, self.unsent = self.held, [], []
        kind = Drained.kind if end.kind is EndKind.DRAINED else WorkerLost.kind
        first = self.report.heartbeats or tuple(Heartbeat(task.shard.id, task.first_window, 0, 0) for task in lost[:1])
        return [
            ShardFailure(
                task,
                kind,
                f"{self.name}: {end.reason}",
                True,
                heartbeats=() if number or not self.report.ready else first,
                traceback=end.traceback,
            )
            for number, task in enumerate(lost)
        ]


class WorkerRegistry:
    """All workers of a run. size: how many there may be; it may change at any time."""

    def __init__(self, size: int, clock: Callable[[], float] = monotonic) -> None:
        self.size = size
        self.handles: list[WorkerHandle] = []
        self.blocked_nodes: dict[str, str] = {}  # nodes where no worker is started again, and why
        self._clock = clock
        self.wanted = size  # tasks that are not over: more workers than that have nothing to do
        self._started = 0
        self._ended_made = MetricsSnapshot()  # by workers that have ended
        self._matching, self._mismatched = 0, 0  # workers that were ready, and that were left out
        self._false_starts = 0  # in a row
        self._not_before = -float("inf")
        self._failures: Counter[str] = Counter()  # by node, in a row

    @property
    def made(self) -> MetricsSnapshot:
        """What all workers have made so far, committed or not."""
        made = deepcopy(self._ended_made)
        for handle in self.handles:
            made.add(handle.report.made)
        return made

    @property
    def ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(handle.report.ready and not handle.excluded for handle in self.handles)

    @property
    def excluded(self) -> list[WorkerHandle]:
        """Workers that get no work."""
        return [handle for handle in self.handles if handle.excluded]

    def free(self) -> int:
        """How many more tasks can be assigned now."""
        return sum(handle.free() for handle in self.handles)

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(handle.free() == TASKS_AHEAD for handle in self.handles)

    def submit(self, task: ShardTask) -> None:
        """Assign a task to the worker that holds fewest."""
        max(self.handles, key=WorkerHandle.free).give(task)

    def start(self) -> list[WorkerHandle]:
        """Register the workers that are to be started now."""
        excluded = len(self.excluded)
        present = len(self.handles) - excluded
        room = min(self.size - excluded, max(1, self.wanted)) - present
        if self._clock() < self._not_before:
            return []
        started = [WorkerHandle(f"worker {self._started + number}") for number in range(room)]
        self._started += len(started)
        self.handles += started
        return started

    def surplus(self) -> list[WorkerHandle]:
        """Workers that have had nothing to do for a while, and that no task is left for."""
        over = sum(not handle.excluded for handle in self.handles) - max(1, self.wanted)
        since = self._clock() - IDLE_S
        idle = [
            handle
            for handle in self.handles
            if handle.report.ready and not (handle.held or handle.excluded) and handle.busy_at < since
        ]
        return idle[: max(0, over)]

    def stop(self, handle: WorkerHandle, end: WorkerEnd) -> list[ShardFailure]:
        """Remove a worker that has ended, or must end. The tasks it held come back.

        Raises NoWorker or WorkerLost where no worker can be started, WouldRepeat where one that was ready met what no
        other would pass.
        """
        with bound(worker=handle.name, node=handle.report.node):
            logger.log(logging.INFO if end.kind is EndKind.DRAINED else logging.WARNING, "worker ended: %s", end.reason)
        if end.kind is EndKind.PERMANENT and handle.report.ready:
            raise WouldRepeat(f"{handle.name}: {end.reason}")
        self.handles.remove(handle)
        self._ended_made.add(handle.report.made)
        labelled = bool(handle.report.made.rows)
        if labelled or handle.report.ready:
            self._false_starts = 0
        if labelled:
            self._failures.pop(handle.report.node, None)
        excused = labelled or handle.probing()
        lost = handle.fail(end)
        if end.kind is not EndKind.DRAINED and not excused:
            self._count_failure(handle, end)
        return lost

    def _count_failure(self, handle: WorkerHandle, end: WorkerEnd) -> None:
        permanent = end.kind is EndKind.PERMANENT
        self._failures[handle.report.node] += FAILURES_TO_BLOCK if permanent else 1
        elsewhere = any(other.report.ready and other.report.node != handle.report.node for other in self.handles)
        if handle.report.node and elsewhere and self._failures[handle.report.node] >= FAILURES_TO_BLOCK:
            self.blocked_nodes[handle.report.node] = end.reason
            logger.warning("no worker is started on node %s any more: %s", handle.report.node, end.reason)
        if handle.report.ready:
            return
        self._false_starts += 1
        self._not_before = self._clock() + delay_s(FIRST_DELAY_S, self._false_starts)
        reason = f"no worker can start: {end.reason}"
        if not self._matching and (permanent or self._false_starts >= MAX_FALSE_STARTS):
            error = NoWorker(reason)
            error.given = permanent
            raise error
        if not self.ready and self._false_starts >= MAX_LATE_STARTS:  # they could before: what is gone may come back
            raise WorkerLost(reason)

    def update(self, handle: WorkerHandle, report: Report) -> list[Outcome]:
        """Take an answer in. The tasks of a worker that turns out to be unfit come back.

        Raises WouldRepeat, NoWorker where too many workers are unfit.
        """
        was_ready = handle.report.ready
        outcomes = handle.update(report)
        if report.unfit and not handle.excluded:
            self._matching -= was_ready
            outcomes += handle.fail(WorkerEnd(EndKind.DRAINED, report.unfit))
            self._exclude(handle, report.unfit)
        elif report.ready and not was_ready:
            self._matching += 1
            self._false_starts = 0
            with bound(worker=handle.name, node=handle.report.node):
                logger.info("worker ready")
            for twin in self.handles:
                if report.device and twin.report.device == report.device and twin is not handle:
                    reason = f"{handle.name} and {twin.name} were given the same device, {report.device}"
                    self._exclude(handle, reason)
                    break
        return outcomes

    def _exclude(self, handle: WorkerHandle, reason: str) -> None:
        """Give a worker no work. It keeps its device, so that no other worker is started on it."""
        handle.excluded = True
        with bound(worker=handle.name, node=handle.report.node):
            logger.warning("worker left out: %s", reason)
        self._mismatched += 1
        if self._mismatched > 1 and self._mismatched > self._matching:
            raise WouldRepeat(
                f"{self._mismatched} workers disagree with the run's reference image, {self._matching} agree: {reason}"
            )
        if self._mismatched >= self.size and not self._matching:
            raise NoWorker(f"no worker can start: {reason}")
