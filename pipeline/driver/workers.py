"""The workers of a pool as the driver sees them: who holds what, how many there should be, who is not to come back."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from pipeline.driver.backoff import delay_s
from pipeline.errors import FailureKind, NoWorker, WorkerLost, WouldRepeat
from pipeline.logs.context import bound
from pipeline.logs.records import replay
from pipeline.messages import Heartbeat, Outcome, ShardFailure, ShardTask, TaskDone
from pipeline.worker.host import DRAINED, Report
from pipeline.worker.stage_timer import MetricsSnapshot, combine

TASKS_AHEAD = 2  # a worker: one being labelled, the next being fetched
STALL_S = 900.0  # seconds without a sample, a byte or a commit after which a worker that has work counts as hung
PROBE_STALL_S = 120.0  # the same while a window is searched for the sample that hangs
IDLE_S = 20.0  # seconds after which a worker that nothing is left for gives its device back
MAX_FALSE_STARTS = 3  # workers that end before they are ready, none having been: the machine or the model is at fault
MAX_LATE_STARTS = 10  # the same in a row, when some were ready before and none is now
STRIKES = 4  # workers that end in a row on one node without a sample labelled: no other is started there
FIRST_DELAY_S = 0.5  # before a worker takes the place of one that was not ready
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """The driver's view of one worker."""

    name: str
    held: list[ShardTask] = field(default_factory=list)
    unsent: list[ShardTask] = field(default_factory=list)
    labelled: int = 0
    retries: int = 0  # requests to storage sent once more
    ready: bool = False
    leaving: bool = False  # it was asked to
    left_out: bool = False  # it computes otherwise than the others, or has not a device of its own: it gets no work
    node: str = ""
    device: str = ""
    heartbeats: tuple[Heartbeat, ...] = ()
    traceback: str = ""  # of the error that ended it
    made: MetricsSnapshot = field(default_factory=MetricsSnapshot)  # rows, committed or not
    asked: float = field(default_factory=monotonic)  # when the answer that is awaited was asked for
    busy: float = field(default_factory=monotonic)  # when it last had something to do

    def hangs(self, report: Report | None, stall_s: float) -> bool:
        """Whether a worker that has work, or loads its model, has stopped moving, or (no report) answering."""
        if report is None:
            return bool(self.held) and monotonic() - self.asked > self._patience(stall_s)
        return (bool(self.held) or not report.ready) and report.still_s > self._patience(stall_s)

    def _patience(self, stall_s: float) -> float:
        return min(stall_s, PROBE_STALL_S) if self.probing() else stall_s

    def probing(self) -> bool:
        """Whether it is looking for poison: nothing else may be in the process that is to die."""
        return any(task.probe for task in self.held)

    def free(self) -> int:
        """How many more tasks it may hold: none before it is ready, so that no task waits for a device to appear."""
        if not self.ready or self.leaving or self.left_out or self.probing():
            return 0
        return TASKS_AHEAD - len(self.held)

    def give(self, task: ShardTask) -> None:
        """Put a task on the desk; it goes out with the next exchange."""
        self.held.append(task)
        self.unsent.append(task)

    def send(self) -> list[ShardTask]:
        """What goes out now."""
        sent, self.unsent = self.unsent, []
        self.asked = monotonic()
        return sent

    def take(self, report: Report) -> list[Outcome]:
        """Note an answer; tasks that are over leave the desk."""
        replay(report.log, worker=self.name, node=report.node)
        self.labelled, self.retries, self.heartbeats = report.labelled, report.retries, report.heartbeats
        self.made, self.traceback = report.made, report.traceback
        self.ready, self.node, self.device = report.ready or self.ready, report.node, report.device
        if self.held or not self.ready:
            self.busy = monotonic()
        for outcome in report.outcomes:
            if isinstance(outcome, (TaskDone, ShardFailure)):
                self.held.remove(outcome.task)
        return list(report.outcomes)

    def lose(self, reason: str) -> list[Outcome]:
        """The worker is gone, and what it held with it."""
        lost, self.held, self.unsent = self.held, [], []
        kind = FailureKind.DRAINED if reason == DRAINED else FailureKind.WORKER_LOST
        first = self.heartbeats or tuple(Heartbeat(task.shard.id, task.first_window, 0, 0) for task in lost[:1])
        return [
            ShardFailure(
                task,
                kind,
                f"{self.name}: {reason}",
                True,
                heartbeats=() if place or not self.ready else first,
                traceback=self.traceback,
            )
            for place, task in enumerate(lost)
        ]


class WorkerRegistry:
    """All desks of a pool. size: how many workers there may be; it may change at any time."""

    def __init__(self, size: int, clock: Callable[[], float] = monotonic) -> None:
        self.size = size
        self.desks: list[WorkerHandle] = []
        self.blocked_nodes: dict[str, str] = {}  # nodes where no worker is started again, and why
        self._clock = clock
        self._wanted = size
        self._made = 0
        self._gone_labelled, self._gone_retries = 0, 0  # by workers that are no more
        self._gone_made = MetricsSnapshot()
        self._agreed, self._odd = 0, 0  # workers that were ready, and that were left out
        self._false_starts = 0  # in a row
        self._not_before = -float("inf")
        self._strikes: Counter[str] = Counter()

    @property
    def labelled(self) -> int:
        """Samples labelled so far, committed or not."""
        return self._gone_labelled + sum(desk.labelled for desk in self.desks)

    @property
    def made(self) -> MetricsSnapshot:
        """Rows by what they are, committed or not."""
        return combine([self._gone_made, *(desk.made for desk in self.desks)])

    @property
    def retries(self) -> int:
        """Requests to storage that workers have sent once more."""
        return self._gone_retries + sum(desk.retries for desk in self.desks)

    @property
    def ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(desk.ready and not desk.left_out for desk in self.desks)

    def free(self) -> int:
        """How many more tasks can be handed over now."""
        return sum(desk.free() for desk in self.desks)

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(desk.free() == TASKS_AHEAD for desk in self.desks)

    def submit(self, task: ShardTask) -> None:
        """Hand a task to the worker that holds least."""
        max(self.desks, key=WorkerHandle.free).give(task)

    def want(self, tasks: int) -> None:
        """How many tasks are not over: more workers than that are of no use."""
        self._wanted = tasks

    def hire(self) -> list[WorkerHandle]:
        """Desks for workers that are to be started now."""
        present = sum(not desk.left_out for desk in self.desks)
        room = min(self.size - (len(self.desks) - present), max(1, self._wanted)) - present
        if self._clock() < self._not_before:
            return []
        hired = [WorkerHandle(f"worker {self._made + place}") for place in range(room)]
        self._made += len(hired)
        self.desks += hired
        return hired

    def surplus(self) -> list[WorkerHandle]:
        """Workers that have had nothing to do for a while, and that nothing is left for."""
        over = sum(not desk.left_out for desk in self.desks) - max(1, self._wanted)
        since = self._clock() - IDLE_S
        idle = [desk for desk in self.desks if desk.ready and not (desk.held or desk.left_out) and desk.busy < since]
        return idle[: max(0, over)]

    def dismiss(self, desk: WorkerHandle, reason: str, permanent: bool = False) -> list[Outcome]:
        """A worker is gone: what it held comes back. permanent: another one in its place would end the same way.

        Raises NoWorker, WorkerLost with the reason where no worker can be started, WouldRepeat where one that labelled
        met what no other would pass.
        """
        with bound(worker=desk.name, node=desk.node):
            logger.log(logging.INFO if reason == DRAINED else logging.WARNING, "worker ended: %s", reason)
        if permanent and desk.ready:
            raise WouldRepeat(f"{desk.name}: {reason}")
        self.desks.remove(desk)
        self._gone_labelled += desk.labelled
        self._gone_retries += desk.retries
        self._gone_made = combine([self._gone_made, desk.made])
        probing = desk.probing()
        if desk.labelled or desk.ready:
            self._false_starts = 0
        if desk.labelled:
            self._strikes.pop(desk.node, None)
        lost = desk.lose(reason)
        if reason == DRAINED or desk.labelled or probing:
            return lost
        self._strike(desk, reason, STRIKES if permanent and not desk.ready else 1)
        if not desk.ready:
            self._false_start(reason, permanent)
        return lost

    def _strike(self, desk: WorkerHandle, reason: str, strikes: int) -> None:
        self._strikes[desk.node] += strikes
        elsewhere = any(other.ready and other.node != desk.node for other in self.desks)
        if desk.node and elsewhere and self._strikes[desk.node] >= STRIKES:
            self.blocked_nodes[desk.node] = reason
            logger.warning("no worker is started on node %s any more: %s", desk.node, reason)

    def _false_start(self, reason: str, permanent: bool) -> None:
        self._false_starts += 1
        self._not_before = self._clock() + delay_s(FIRST_DELAY_S, self._false_starts)
        never = not self._agreed and (permanent or self._false_starts >= MAX_FALSE_STARTS)
        if never:
            raise NoWorker(f"no worker can start: {reason}")
        if not self.ready and self._false_starts >= MAX_LATE_STARTS:  # they could before: what is gone may come back
            raise WorkerLost(f"no worker can start: {reason}")

    def note(self, desk: WorkerHandle, report: Report) -> list[Outcome]:
        """A worker has answered; what one that is unfit held comes back.

        Raises WouldRepeat, NoWorker where too many workers are unfit.
        """
        was_ready = desk.ready
        outcomes = desk.take(report)
        if report.unfit and not desk.left_out:
            self._agreed -= was_ready
            outcomes += desk.lose(DRAINED)
            self._leave_out(desk, report.unfit)
        elif desk.ready and not was_ready:
            self._agreed += 1
            self._false_starts = 0
            with bound(worker=desk.name, node=desk.node):
                logger.info("worker ready")
            twin = next((other for other in self.desks if other.device == desk.device and other is not desk), None)
            if desk.device and twin:
                self._leave_out(desk, f"{desk.name} and {twin.name} were given the same device, {desk.device}")
        return outcomes

    def _leave_out(self, desk: WorkerHandle, reason: str) -> None:
        """It gets no work, and keeps its device so that no other worker is given it."""
        desk.left_out = True
        with bound(worker=desk.name, node=desk.node):
            logger.warning("worker left out: %s", reason)
        self._odd += 1
        if self._odd > 1 and self._odd > self._agreed:
            raise WouldRepeat(
                f"{self._odd} workers disagree with the run's reference image, {self._agreed} agree: {reason}"
            )
        if self._odd >= self.size and not self._agreed:
            raise NoWorker(f"no worker can start: {reason}")
