"""A worker in a thread of its process: it labels while the process answers for it."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic

from diffseg.models.fetch import bytes_arriving
from pipeline.errors import DeviceMismatch, PipelineError
from pipeline.logs.records import Record
from pipeline.logs.traces import told, traceback_of
from pipeline.messages import EndKind, Heartbeat, Outcome, ShardTask, WorkerEnd
from pipeline.worker.stage_timer import MetricsSnapshot
from pipeline.worker.worker import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker answers. log: what its process has logged since the last answer, where that is not the driver's."""

    outcomes: tuple[Outcome, ...]
    labelled: int
    ready: bool  # the model is loaded
    still_s: float  # seconds since anything moved, the model's loading included
    heartbeats: tuple[Heartbeat, ...] = ()  # what it has in hand
    made: MetricsSnapshot = field(default_factory=MetricsSnapshot)  # rows, committed or not yet
    retries: int = 0  # requests to storage that its process has sent once more
    node: str = ""  # the node it runs on, where the pool has several
    device: str = ""  # what it labels on, where no other worker may
    unfit: str = ""  # why it must get no work though it lives
    end: WorkerEnd | None = None  # it does not live any more
    log: tuple[Record, ...] = ()


class WorkerHost:
    """A worker in a thread of this process: it labels while questions are answered."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        self._tasks: queue.SimpleQueue[ShardTask | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._worker: Worker | None = None
        self._leave_by: float | None = None  # when it was asked to leave: by then, on the clock of this process
        self._end: WorkerEnd | None = None
        self._unfit = ""
        self._began = monotonic()  # or when a model on its way to this machine last grew
        self._arriving = 0  # bytes of it
        self._handed_s = self._began  # when tasks last came: the wait for them is no standing still
        self._told: tuple[Heartbeat, ...] = ()  # what the last answer said of the worker's hands
        self._awaited: Heartbeat | None = None  # what the worker wants known before it goes on
        self._known = threading.Event()
        threading.Thread(target=copy_context().run, args=(self._work, build), daemon=True, name="worker").start()

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """Give tasks, get what has happened since; waits up to wait_s for something to happen."""
        for task in tasks:
            self._tasks.put(task)
        if self._awaited in self._told:
            self._known.set()  # whoever asks again has read the last answer
        if tasks:
            self._handed_s = monotonic()
        end = self._end  # read before the outcomes: what came first is then among them
        outcomes: list[Outcome] = []
        try:
            while (outcome := self._outcomes.get(timeout=0 if outcomes or end else wait_s)) is not None:
                outcomes.append(outcome)
        except queue.Empty:
            pass
        worker = self._worker
        self._told = worker.in_flight.heartbeats() if worker else ()
        return Report(
            outcomes=tuple(outcomes),
            labelled=worker.labelled if worker else 0,
            ready=worker is not None,
            still_s=monotonic() - (max(worker.moved, self._handed_s) if worker else self._start_moved()),
            heartbeats=self._told,
            made=worker.timer.snapshot() if worker else MetricsSnapshot(),
            device=worker.device if worker else "",
            unfit=self._unfit,
            end=end,
        )

    def _start_moved(self) -> float:
        """When a start was last seen to move. A slow download does, whichever process of this machine makes it."""
        if (there := bytes_arriving()) != self._arriving:
            self._arriving, self._began = there, monotonic()
        return self._began

    def drain(self, seconds: float = math.inf) -> None:
        """Begin no new window. The one at hand is finished if that takes no longer than `seconds`, else it is given up;
        then the worker ends.
        """
        self._leave_by = min(monotonic() + seconds, math.inf if self._leave_by is None else self._leave_by)
        self._tasks.put(None)
        if self._worker:
            self._worker.leave(self._leave_by)

    def _announce(self, beat: Heartbeat) -> None:
        self._known.clear()
        self._awaited = beat
        self._outcomes.put(None)
        self._known.wait()

    def _work(self, build: Callable[[], Worker]) -> None:
        end = WorkerEnd(EndKind.DRAINED, "drained")
        try:
            worker = build()
            self._worker = worker
            if self._leave_by is not None:
                worker.leave(self._leave_by)
            self._outcomes.put(None)  # ready: whoever waits for an answer is told at once
            for outcome in worker.run(self._handed(), self._announce):
                self._outcomes.put(outcome)
        except DeviceMismatch as error:
            logger.error("gets no work: %s", error)
            self._unfit = str(error)
            return
        except PipelineError as error:
            logger.error("ends: %s", error, exc_info=None if error.expected else error)
            kind = EndKind.LOST if error.retryable or error.resumable else EndKind.PERMANENT
            end = WorkerEnd(kind, str(error)[:500], "" if error.expected else traceback_of(error))
        except Exception as error:  # whatever ends a worker is for the driver to judge
            logger.exception("ends")
            end = WorkerEnd(EndKind.LOST, told(error)[:500], traceback_of(error))
        self._end = end
        self._outcomes.put(None)

    def _handed(self) -> Iterator[ShardTask]:
        while (task := self._tasks.get()) is not None:
            yield task
