"""Where tasks go and outcomes come from: the seam between the driver and the processes that label.

`Station` runs one worker in a thread and answers for it. `LocalPool` is stations in this process, `actor.RayPool` one
station an actor; both keep a `Desk` for each, the driver's view of what it holds.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from pipeline.errors import Drained, PipelineError, WorkerLost
from pipeline.records import Beat, Outcome, ShardFailure, ShardTask, TaskDone
from pipeline.worker import Worker

DRAINED = "drained"  # how a worker ends that was asked to leave
PROBE_STALL_S = 120.0  # the same while a window is searched for the sample that hangs
STALL_S = 900.0  # seconds without a sample, a byte or a commit after which a worker that has work counts as hung
TASKS_AHEAD = 2  # a worker: one being labelled, the next being fetched
MAX_FALSE_STARTS = 3  # workers that die before they are ready, none having been: the machine or the model is at fault


class Pool(Protocol):
    """Workers, seen from the driver."""

    @property
    def labelled(self) -> int:
        """Samples labelled so far, committed or not."""
        ...

    def free(self) -> int:
        """How many more tasks can be handed over now."""
        ...

    def idle(self) -> int:
        """How many workers have nothing to do: a probe needs one for itself."""
        ...

    def submit(self, task: ShardTask) -> None:
        """Hand over a task; only while `free` says so, or `idle` for a probe."""
        ...

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most. A dead worker is a retryable ShardFailure for each task it held.

        Raises PipelineError where no worker can be started at all.
        """
        ...

    def close(self) -> None:
        """Leave no worker behind."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What a station answers. ended: why its worker is no more; hopeless: another one would end the same way."""

    outcomes: tuple[Outcome, ...]
    labelled: int
    ready: bool  # the model is loaded
    still_s: float  # seconds since anything moved, the model's loading included
    beats: tuple[Beat, ...] = ()  # what it has in hand
    ended: str | None = None
    hopeless: bool = False


class Station:
    """A worker in a thread of this process: it labels while questions are answered."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        self._tasks: queue.SimpleQueue[ShardTask | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._worker: Worker | None = None
        self._draining = False
        self._ended: str | None = None
        self._hopeless = False
        self._began = monotonic()
        self._told: tuple[Beat, ...] = ()  # what the last answer said of the worker's hands
        self._awaited: Beat | None = None  # what the worker wants known before it goes on
        self._known = threading.Event()
        threading.Thread(target=self._work, args=(build,), daemon=True, name="worker").start()

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """Give tasks, get what has happened since; waits up to wait_s for something to happen."""
        for task in tasks:
            self._tasks.put(task)
        if self._awaited in self._told:
            self._known.set()  # whoever asks again has read the last answer
        if tasks and self._worker:
            self._worker.moved = monotonic()  # what it did not have to do does not count as standing still
        ended = self._ended  # read before the outcomes: what came first is then among them
        outcomes: list[Outcome] = []
        try:
            while (outcome := self._outcomes.get(timeout=0 if outcomes or ended else wait_s)) is not None:
                outcomes.append(outcome)
        except queue.Empty:
            pass
        worker = self._worker
        self._told = tuple(worker.hands.copy().values()) if worker else ()
        return Report(
            outcomes=tuple(outcomes),
            labelled=worker.labelled if worker else 0,
            ready=worker is not None,
            still_s=monotonic() - (worker.moved if worker else self._began),
            beats=self._told,
            ended=ended,
            hopeless=self._hopeless,
        )

    def drain(self) -> None:
        """Begin no new window; the worker ends when the one at hand is committed."""
        self._draining = True
        self._tasks.put(None)
        if self._worker:
            self._worker.draining.set()

    def _announce(self, beat: Beat) -> None:
        self._known.clear()
        self._awaited = beat
        self._outcomes.put(None)
        self._known.wait()

    def _work(self, build: Callable[[], Worker]) -> None:
        ended = DRAINED
        try:
            worker = build()
            worker.announce = self._announce
            self._worker = worker
            if self._draining:
                worker.draining.set()
            for outcome in worker.run(self._handed()):
                self._outcomes.put(outcome)
        except PipelineError as error:
            ended, self._hopeless = str(error), not error.retryable
        except Exception as error:  # noqa: BLE001 - whatever ends a worker is for the driver to judge
            ended = f"{type(error).__name__}: {error}"
        self._ended = ended[:500]
        self._outcomes.put(None)

    def _handed(self) -> Iterator[ShardTask]:
        while (task := self._tasks.get()) is not None:
            yield task


@dataclass(slots=True)
class Desk:
    """The driver's view of one worker."""

    name: str
    held: list[ShardTask] = field(default_factory=list)
    unsent: list[ShardTask] = field(default_factory=list)
    labelled: int = 0
    ready: bool = False
    beats: tuple[Beat, ...] = ()
    asked: float = field(default_factory=monotonic)  # when the answer that is awaited was asked for

    def hangs(self, report: Report | None, stall_s: float) -> bool:
        """Whether a worker with work in its hands has stopped moving, or (no report) answering."""
        still = monotonic() - self.asked if report is None else report.still_s
        return bool(self.held) and still > (min(stall_s, PROBE_STALL_S) if self.probing() else stall_s)

    def probing(self) -> bool:
        """Whether it is looking for poison: nothing else may be in the process that is to die."""
        return any(task.probe for task in self.held)

    def free(self) -> int:
        """How many more tasks it may hold."""
        return 0 if self.probing() else TASKS_AHEAD - len(self.held)

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
        self.labelled, self.ready, self.beats = report.labelled, report.ready or self.ready, report.beats
        for outcome in report.outcomes:
            if isinstance(outcome, (TaskDone, ShardFailure)):
                self.held.remove(outcome.task)
        return list(report.outcomes)

    def lose(self, reason: str) -> list[Outcome]:
        """The worker is gone, and what it held with it."""
        lost, self.held, self.unsent = self.held, [], []
        kind = Drained.__name__ if reason == DRAINED else WorkerLost.__name__
        first = self.beats or tuple(Beat(task.shard.id, task.first_window, 0, 0) for task in lost[:1])
        return [
            ShardFailure(task, kind, f"{self.name}: {reason}", True, beats=() if place or not self.ready else first)
            for place, task in enumerate(lost)
        ]


def hung(still_s: float) -> str:
    """How the loss of a hung worker is named."""
    return f"nothing moved for {still_s:.0f} s"


class FalseStarts:
    """Counts workers that die before they are ready, so that a hopeless start ends the run with its reason."""

    def __init__(self) -> None:
        self._count = 0
        self._any_ready = False

    def note(self, desk: Desk, reason: str, hopeless: bool) -> None:
        """Raises WorkerLost with the reason where no worker will ever be ready."""
        self._any_ready |= desk.ready
        self._count += not desk.ready
        if not self._any_ready and (hopeless or self._count >= MAX_FALSE_STARTS):
            raise WorkerLost(f"no worker can start: {reason}")


class LocalPool:
    """Workers in threads of this process: for tests, and for machines without Ray."""

    def __init__(self, build: Callable[[], Worker], workers: int = 1, stall_s: float = STALL_S) -> None:
        self._build = build
        self._stall_s = stall_s
        self._starts = FalseStarts()
        self._gone = 0  # samples labelled by workers that have ended
        self._desks = [(Desk(f"worker {i}"), Station(build)) for i in range(workers)]

    @property
    def labelled(self) -> int:
        """Samples labelled so far, committed or not."""
        return self._gone + sum(desk.labelled for desk, _ in self._desks)

    def free(self) -> int:
        """How many more tasks can be handed over now."""
        return sum(desk.free() for desk, _ in self._desks)

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(not desk.held for desk, _ in self._desks)

    def submit(self, task: ShardTask) -> None:
        """Hand a task to the worker that holds least."""
        max((desk for desk, _ in self._desks), key=Desk.free).give(task)

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most."""
        outcomes: list[Outcome] = []
        for place, (desk, station) in enumerate(self._desks):
            report = station.exchange(desk.send(), 0.2 / len(self._desks))
            outcomes += desk.take(report)
            ended = report.ended
            if ended is None and desk.hangs(report, self._stall_s):
                ended = hung(report.still_s)  # a thread cannot be killed: it is left behind, and late commits lose
            if ended is not None:
                outcomes += desk.lose(ended)
                self._starts.note(desk, ended, report.hopeless)
                self._gone += desk.labelled
                self._desks[place] = (Desk(desk.name), Station(self._build))
        return outcomes

    def close(self) -> None:
        """End the workers after the window at hand."""
        for _, station in self._desks:
            station.drain()
