"""One device's work: tasks in, committed windows out. Fetching, decoding, labelling and committing overlap.

    tasks -> read -> decode (some threads) -> label (in batches) -> encode -> commit -> outcomes

Each stage has a thread of its own, so that the thread that labels hardly ever waits.

A window is committed whole or not at all. Rows keep the order of their samples. A batch holds samples of one shape of
the model's input, in order, and never crosses a window, so that a shard gives equal rows whichever worker labels it.
The next shard is read while the last one is still being labelled.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter

from pipeline.concurrency import prefetch_map
from pipeline.errors import CorruptShard
from pipeline.logs.context import bound
from pipeline.messages import Heartbeat, Outcome, Receipt, ShardTask
from pipeline.records import OK, POISON, ImageSample, LabelRecord, RawSample, SampleFailure
from pipeline.run.ledger import Ledger
from pipeline.worker.committer import Committer
from pipeline.worker.device_check import DeviceCheck
from pipeline.worker.in_flight import InFlight
from pipeline.worker.labeling import AdaptiveBatches, Row, Segmenter, failed_row, label_batch
from pipeline.worker.sample_loader import Sample, SampleLoader
from pipeline.worker.stage_timer import Stage, StageTimer
from pipeline.worker.window import Pace, TaskEnd, WindowWork, WorkerObserver

WINDOWS_AT_HAND = 2  # one on its way to storage, one being labelled: no more is lost with a worker
ENCODING_AHEAD = 2  # batches whose label maps are not yet encoded
MARGIN_S = 2.0  # between a worker's last commit and the moment its machine goes
Step = Callable[[], Outcome | None]  # puts something on storage; None: there is nothing to tell the driver


class Worker:
    """Labels tasks with one model for one run.

    device: identifies a device that no other worker may have; "" where devices are shared. device_check: finds a device
    that computes wrongly, as it goes. observer: is told of windows.
    """

    def __init__(
        self,
        ledger: Ledger,
        segmenter: Segmenter,
        *,
        device: str = "",
        device_check: DeviceCheck | None = None,
        observer: WorkerObserver | None = None,
    ) -> None:
        self.ledger, self.device, self._device_check, self._observer = ledger, device, device_check, observer
        self.segmenter = AdaptiveBatches(segmenter)
        self.committer = Committer(ledger)
        self.timer = StageTimer()
        self.in_flight = InFlight(ledger.run.window)
        self.loader = SampleLoader(ledger, self.committer, self.timer, self.in_flight, self.segmenter.prepare)
        self.moved = monotonic()  # when a stage last finished something
        self._ahead = 2 * self.segmenter.batch_size + 2  # samples that are decoded ahead
        self._pace = Pace()
        self._leave_by: float | None = None
        self._at_hand = threading.Semaphore(WINDOWS_AT_HAND)

    def check_device(self) -> None:
        """Label the reference image, where there is one. Raises DeviceMismatch."""
        if self._device_check:
            self._device_check.check(self.segmenter, self.timer.rows)

    def leave(self, by: float) -> None:
        """Begin no new window, and do nothing later than `by`, on the clock `monotonic`."""
        self._leave_by = by

    def run(
        self, tasks: Iterable[ShardTask], announce: Callable[[Heartbeat], None] = lambda beat: None
    ) -> Iterator[Outcome]:
        """Label tasks as they come, in order; ends when they end. Failures of a task are values.

        announce: told what a probe is about to touch; returns when the driver knows of it.
        Raises DeviceMismatch where the device turns out to compute wrongly; the window at hand is then given up.
        """
        self._announce = announce
        steps = self.timer.working_through(Stage.LABEL, self._steps(tasks))
        full = partial(self.timer.waiting, Stage.COMMIT)
        with ThreadPoolExecutor(1, "encode") as self._encoder:
            for outcome in prefetch_map(self._carried_out, steps, depth=2, full=full, name="commit"):
                self.moved = monotonic()
                if isinstance(outcome, Receipt):
                    self._committed(outcome)
                if outcome is not None:
                    yield outcome

    def _carried_out(self, step: Step) -> Outcome | None:
        with self.timer.working(Stage.COMMIT):
            return step()

    def _committed(self, receipt: Receipt) -> None:
        if not receipt.wasted:
            self.timer.window()
        if self._observer:
            self._observer.window_committed(receipt, self.timer.snapshot())

    def _steps(self, tasks: Iterable[ShardTask]) -> Iterator[Step]:
        """What goes to storage, in order: windows as they fill, ends of tasks as they come."""
        work: WindowWork | None = None
        probed: list[RawSample] = []
        for task, item in self.loader.decoded(tasks, self._ahead):
            self.moved = monotonic()
            number = None if isinstance(item, TaskEnd | RawSample) else item.raw.index // self.ledger.run.window
            if work and work.number != number:
                if _is_whole(item):
                    yield self._finished(work)
                else:
                    self._set_launched(work, [])
                    self._at_hand.release()
                work = None
            if isinstance(item, TaskEnd):
                if probed and _is_whole(item):
                    yield self._probed(task, probed)
                probed = []
                yield partial(self.committer.close, task, item)
            elif isinstance(item, RawSample):
                probed.append(item)
            elif task not in self.committer.over:
                if self._leave_by is not None and not self._fits(work, self._leave_by):
                    return
                if work is None:
                    work = self._begun(task, item.raw.index // self.ledger.run.window)
                self._take(work, item)

    def _fits(self, work: WindowWork | None, leave_by: float) -> bool:
        """Whether the window at hand can be on storage before this worker must leave; a new one is not begun."""
        if work is None:
            return False
        left = self.ledger.run.window - work.labelled
        return monotonic() + left * self._pace.sample_s + 2 * self.committer.slowest_s + MARGIN_S < leave_by

    def _take(self, work: WindowWork, item: Sample) -> None:
        work.samples.append(item.raw if self.ledger.run.also else replace(item.raw, members={}))
        if isinstance(item, SampleFailure):
            work.records[item.raw.index] = failed_row(work.task, item)
            self._count(work.records[item.raw.index])
            return
        if batch := work.batch_with(item, self.segmenter.batch_size, self._ahead):
            self._label(work, batch)

    def _probed(self, task: ShardTask, raws: list[RawSample]) -> Step:
        """Label a window that kills workers, piece after piece; each piece is announced before it is touched."""
        assert task.probe is not None
        work = self._begun(task, task.first_window)
        by_index = {raw.index: raw for raw in raws}
        for index in by_index.keys() & set(task.probe.poison):
            failure = SampleFailure(by_index[index], POISON, "killed every worker that had it alone")
            self._take(work, failure)
            self.committer.quarantine(task, failure)
        for piece in task.probe.pieces(by_index):
            beat = Heartbeat(task.shard.id, work.number, piece[0], piece[-1], probed=True)
            self.in_flight.probe(beat)
            self._announce(beat)
            for index in piece:
                self._take(work, self.loader.decode(by_index[index]))
            self._label_rest(work)
        self.in_flight.probe(None)
        work.samples.sort(key=lambda raw: raw.index)
        return self._finished(work)

    def _finished(self, work: WindowWork) -> Step:
        self._label_rest(work)
        if self._device_check and (work.doubtful or self._device_check.is_due(self.timer.rows)):
            self.check_device()
        return partial(self._commit, work)

    def _begun(self, task: ShardTask, number: int) -> WindowWork:
        """A new window, once at most one other is on its way to storage."""
        with self.timer.waiting(Stage.COMMIT):
            self._at_hand.acquire()
        return WindowWork(task, number)

    def _commit(self, work: WindowWork) -> Outcome | None:
        try:
            with bound(shard=work.task.shard.id, window=work.number):
                return self.committer.commit(work)
        finally:
            self._at_hand.release()

    def _count(self, record: LabelRecord) -> None:
        error = f": {record.error}" if record.error else ""
        self.timer.row(record.status, record.num_segments, f"{record.shard} {record.key}{error}"[:200])

    def _encode(self, work: WindowWork, rows: list[Row]) -> None:
        with self.timer.working(Stage.ENCODE), self.in_flight.at(work.task, [row.record.index for row in rows]):
            work.records.update((row.record.index, row.encoded()) for row in rows)

    def _label_rest(self, work: WindowWork) -> None:
        """Label what waits for a fuller batch, and what the device has at hand."""
        for batch in work.batches_left():
            self._label(work, batch)
        self._collect(work, work.launched)
        self._set_launched(work, [])

    def _label(self, work: WindowWork, batch: list[ImageSample]) -> None:
        """Start the pass of a batch, then label the one before it; where nothing can be started, label both."""
        if self._observer and not work.encoding and not work.launched:
            self._observer.window_began(work.task, work.number)
        self._pace.began()
        with self._busy(work, batch):
            launched = not work.task.probe and self.segmenter.launch([sample.image for sample in batch])
        before = work.launched
        self._set_launched(work, batch if launched else [])
        self._collect(work, before)
        if not launched:
            self._collect(work, batch)

    @contextmanager
    def _busy(self, work: WindowWork, batch: list[ImageSample]) -> Iterator[None]:
        began = perf_counter()
        with self.in_flight.at(work.task, _indices(batch)):
            yield
        seconds = perf_counter() - began
        work.seconds += seconds
        self.timer.busy(seconds)

    def _set_launched(self, work: WindowWork, batch: list[ImageSample]) -> None:
        work.launched = batch
        self.in_flight.launched(work.task, _indices(batch))

    def _collect(self, work: WindowWork, batch: list[ImageSample]) -> None:
        """Label a batch, and have its rows encoded."""
        if not batch:
            return
        with self._busy(work, batch):
            rows = label_batch(self.segmenter, work.task, batch)
        for row in rows:
            self._count(row.record)
            work.doubtful |= row.record.status != OK
        work.encoding.append(self._encoder.submit(copy_context().run, self._encode, work, rows))
        ahead = 0 if work.task.probe else ENCODING_AHEAD
        if len(work.encoding) > ahead:
            with self.timer.waiting(Stage.COMMIT):
                work.encoding[-1 - ahead].result()
        self.moved = monotonic()
        self._pace.ended(len(batch))


def _indices(batch: list[ImageSample]) -> list[int]:
    return [sample.raw.index for sample in batch]


def _is_whole(following: Sample | RawSample | TaskEnd) -> bool:
    """Whether a window is complete, given what came after it.

    No later read brings more than the samples before damage; a read that broke off may bring more the next time.
    """
    return not isinstance(following, TaskEnd) or following.error is None or isinstance(following.error, CorruptShard)
