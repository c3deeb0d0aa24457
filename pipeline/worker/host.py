"""The host of a worker: the worker labels in a thread, while its process answers the driver."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic

from diffseg.models.fetch import bytes_arriving
from pipeline.errors import DeviceMismatch, PipelineError
from pipeline.logs.records import Record
from pipeline.logs.text import told, traceback_of
from pipeline.messages import EndKind, Heartbeat, Outcome, ShardTask, WorkerEnd
from pipeline.worker.stage_timer import MetricsSnapshot
from pipeline.worker.worker import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """A worker's answer. log: records since the last answer, where the worker is not in the driver's process."""

    outcomes: tuple[Outcome, ...] = ()
    ready: bool = False  # the model is loaded
    still_s: float = 0.0  # seconds since the last progress, loading the model included
    heartbeats: tuple[Heartbeat, ...] = ()  # what it is working on
    made: MetricsSnapshot = field(default_factory=MetricsSnapshot)  # rows, committed or not yet
    node: str = ""  # where it runs, if the pool has several nodes
    device: str = ""  # the device that it must share with no other worker
    unfit: str = ""  # why it must get no work, though it lives
    end: WorkerEnd | None = None  # it lives no more
    log: tuple[Record, ...] = ()


class WorkerHost:
    """A worker in a thread of this process. build: makes the worker, in that thread."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        self._tasks: queue.SimpleQueue[ShardTask | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._worker: Worker | None = None
        self._leave_by: float | None = None  # by when it must leave, if it was asked to; on the clock of this process
        self._end: WorkerEnd | None = None
        self._unfit = ""
        self._began = monotonic()  # or when the download of a model to this machine last progressed
        self._arriving = 0  # bytes of that download
        self._handed_s = self._began  # when tasks last came: to wait for them is no lack of progress
        self._reported: tuple[Heartbeat, ...] = ()  # those of the last answer
        self._awaited: Heartbeat | None = None  # the worker goes on when the driver has got it
        self._known = threading.Event()
        threading.Thread(target=copy_context().run, args=(self._work, build), daemon=True, name="worker").start()

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """Hand tasks over and return what has happened since the last answer. Waits up to wait_s for an outcome."""
        for task in tasks:
            self._tasks.put(task)
        if self._awaited in self._reported:
            self._known.set()  # a driver that asks again has got the last answer
        if tasks:
            self._handed_s = monotonic()
        end = self._end  # read before the outcomes, so that all outcomes before the end are in this answer
        outcomes: list[Outcome] = []
        try:
            while (outcome := self._outcomes.get(timeout=0 if outcomes or end else wait_s)) is not None:
                outcomes.append(outcome)
        except queue.Empty:
            pass
        worker = self._worker
        self._reported = worker.in_flight.heartbeats() if worker else ()
        return Report(
            outcomes=tuple(outcomes),
            ready=worker is not None,
            still_s=monotonic()
            - (max(worker.moved, worker.loader.moved, self._handed_s) if worker else self._start_moved()),
            heartbeats=self._reported,
            made=worker.timer.snapshot() if worker else MetricsSnapshot(),
            device=worker.device if worker else "",
            unfit=self._unfit,
            end=end,
        )

    def _start_moved(self) -> float:
        """When the start last progressed. A slow download counts, whichever process of this machine makes it."""
        if (arrived := bytes_arriving()) != self._arriving:
            self._arriving, self._began = arrived, monotonic()
        return self._began

    def drain(self, seconds: float = math.inf) -> None:
        """Ask the worker to leave. It begins no new window, and finishes its window only if `seconds` are enough."""
        self._leave_by = min(monotonic() + seconds, math.inf if self._leave_by is None else self._leave_by)
        self._tasks.put(None)
        if self._worker:
            self._worker.leave(self._leave_by)

    def _announce(self, heartbeat: Heartbeat) -> None:
        self._known.clear()
        self._awaited = heartbeat
        self._outcomes.put(None)
        self._known.wait()

    def _work(self, build: Callable[[], Worker]) -> None:
        end = WorkerEnd(EndKind.DRAINED, "drained")
        try:
            worker = build()
            self._worker = worker
            if self._leave_by is not None:
                worker.leave(self._leave_by)
            self._outcomes.put(None)  # ready: a driver that waits for an answer gets it at once
            for outcome in worker.run(iter(self._tasks.get, None), self._announce):
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
            logger.exception("ends: %s", told(error))
            end = WorkerEnd(EndKind.LOST, told(error)[:500], traceback_of(error))
        self._end = end
        self._outcomes.put(None)
