"""One device's work: tasks in, committed windows out. Fetching, decoding, labelling and committing overlap.

    tasks -> read (thread) -> decode (threads) -> label (here, in batches) -> encode and commit (thread) -> outcomes

A window is committed whole or not at all; samples keep their order, and batches never cross a window, so that the same
shard gives the same rows whoever labels it. The next shard is read while the last one is still being labelled.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Protocol, TypeAlias

import numpy as np

from diffseg.types import AttentionError, Segmentation
from pipeline.errors import ConfigError, CorruptShard, PipelineError, WorkerLost
from pipeline.images import encode_label_map
from pipeline.ledger import Ledger
from pipeline.overlap import map_ahead
from pipeline.reader import decode_sample, read_shard
from pipeline.records import (
    OK,
    ImageSample,
    LabelRecord,
    Outcome,
    RawSample,
    Receipt,
    SampleFailure,
    ShardFailure,
    ShardTask,
    TaskDone,
)
from pipeline.tars import write_samples

Sample: TypeAlias = ImageSample | SampleFailure


class Segmenter(Protocol):
    """What a worker needs of a model; `diffseg.DiffSeg` is one."""

    @property
    def batch_size(self) -> int:
        """Images a forward pass takes."""
        ...

    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label a batch. Raises AttentionError naming the images that gave no attention."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a process needs to become a worker of a run."""

    output: str
    model: str
    batch_size: int | None = None
    create_only: bool = True  # what the driver found out of the store


def build_worker(settings: WorkerSettings) -> "Worker":
    """Join a run and load its model.

    The run is read first, through this machine's own storage: who cannot see it must not label.
    Raises ConfigError where the run or the model is not the one the driver meant.
    """
    ledger = Ledger.open(settings.output)
    ledger.store.create_only = settings.create_only
    import torch

    from diffseg.backends import Backend
    from diffseg.segmenter import DiffSeg

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # workers share the cores, and the sums of one thread are the same everywhere
    try:
        backend = Backend.load(settings.model, ledger.run.config)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if backend.files.sha256 != ledger.run.weights_sha256:
        raise ConfigError(f"{settings.model}: other weights on this machine than on the driver's")
    return Worker(ledger, DiffSeg(backend, settings.batch_size))


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """Reading of a task is over. samples: how many the shard has up to here; error: what stopped it early."""

    samples: int
    error: PipelineError | None = None


@dataclass(slots=True)
class WindowWork:
    """A window under way: its rows by place, filled as batches come back."""

    task: ShardTask
    number: int
    samples: list[RawSample] = field(default_factory=list)
    records: dict[int, LabelRecord] = field(default_factory=dict)
    waiting: list[ImageSample] = field(default_factory=list)
    seconds: float = 0.0


class Worker:
    """Labels tasks with one model for one run."""

    def __init__(self, ledger: Ledger, segmenter: Segmenter, *, batch_size: int | None = None) -> None:
        self.ledger, self.segmenter = ledger, segmenter
        self.batch_size = batch_size or segmenter.batch_size
        self.decode_threads = max(1, min(4, len(os.sched_getaffinity(0)) - 1))
        self.books = Books(ledger)
        self.labelled = 0  # samples gone through, ever: progress between commits
        self.draining = threading.Event()  # set: no new window begins

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[Outcome]:
        """Label tasks as they come, in order; ends when they end. Failures of a task are values."""
        for outcome in map_ahead(lambda step: step(), self._steps(tasks), depth=2):
            if outcome is not None:
                yield outcome

    def _steps(self, tasks: Iterable[ShardTask]) -> Iterator[Callable[[], Outcome | None]]:
        """What is to be committed, in order: windows as they fill, ends of tasks as they come."""
        work: WindowWork | None = None
        for task, item in self._decoded(tasks):
            number = None if isinstance(item, TaskEnd) else item.raw.index // self.ledger.run.window
            if work and work.number != number:
                if _is_whole(item):
                    yield self._finished(work)
                work = None
            if isinstance(item, TaskEnd):
                yield partial(self.books.close, task, item)
                continue
            if task in self.books.failed:
                continue
            if work is None:
                if self.draining.is_set():
                    return
                work = WindowWork(task, item.raw.index // self.ledger.run.window)
            self._take(work, item)

    def _decoded(self, tasks: Iterable[ShardTask]) -> Iterator[tuple[ShardTask, Sample | TaskEnd]]:
        def decode(item: tuple[ShardTask, RawSample | TaskEnd]) -> tuple[ShardTask, Sample | TaskEnd]:
            task, raw = item
            return task, raw if isinstance(raw, TaskEnd) else decode_sample(raw)

        return map_ahead(decode, self._read(tasks), depth=2 * self.batch_size + 2, threads=self.decode_threads)

    def _read(self, tasks: Iterable[ShardTask]) -> Iterator[tuple[ShardTask, RawSample | TaskEnd]]:
        window, image_key = self.ledger.run.window, self.ledger.run.image_key
        for task in tasks:
            first = task.first_window * window
            stop = None if task.last_window is None else (task.last_window + 1) * window
            count = 0
            try:
                for raw in read_shard(task.shard, first=first, image_key=image_key):
                    if stop is not None and raw.index >= stop:
                        break
                    count = raw.index + 1
                    if raw.index >= first:
                        yield task, raw
                yield task, TaskEnd(count)
            except PipelineError as error:
                yield task, TaskEnd(count, error)

    def _take(self, work: WindowWork, item: Sample) -> None:
        work.samples.append(item.raw if self.ledger.run.also else replace(item.raw, members={}))
        if isinstance(item, SampleFailure):
            work.records[item.raw.index] = _failed_row(work.task, item)
            self.labelled += 1
            return
        work.waiting.append(item)
        if len(work.waiting) >= self.batch_size:
            self._label(work)

    def _finished(self, work: WindowWork) -> Callable[[], Outcome | None]:
        if work.waiting:
            self._label(work)
        return partial(self.books.commit, work)

    def _label(self, work: WindowWork) -> None:
        batch, work.waiting = work.waiting, []
        began = perf_counter()
        for record in label(self.segmenter, work.task, batch):
            work.records[record.index] = record
        work.seconds += perf_counter() - began
        self.labelled += len(batch)


def _is_whole(following: Sample | TaskEnd) -> bool:
    """Whether a window is complete, given what came after it.

    Samples salvaged before damage are all there will ever be; a read that broke off may bring more the next time.
    """
    return not isinstance(following, TaskEnd) or following.error is None or isinstance(following.error, CorruptShard)


def label(segmenter: Segmenter, task: ShardTask, batch: Sequence[ImageSample]) -> list[LabelRecord]:
    """Rows for a batch. A sample that the model cannot label gets a row with the reason; the rest is labelled again."""
    if not batch:
        return []
    try:
        results = segmenter.segment([sample.image for sample in batch])
    except AttentionError as error:
        bad = set(error.images) or set(range(len(batch)))
        failed = [_failed_row(task, _failure(batch[i], "model_nan", error)) for i in sorted(bad)]
        return failed + label(segmenter, task, [sample for i, sample in enumerate(batch) if i not in bad])
    except PipelineError:
        raise
    except Exception as error:
        if type(error).__name__ == "AcceleratorError":  # the device is lost to this process, not the sample to blame
            raise WorkerLost(f"device failed: {error}") from error
        if len(batch) == 1:
            return [_failed_row(task, _failure(batch[0], "model_error", error))]
        half = len(batch) // 2  # out of memory, or one bad sample: halves find out which
        return label(segmenter, task, batch[:half]) + label(segmenter, task, batch[half:])
    return [_row(task, sample, result) for sample, result in zip(batch, results, strict=True)]


def _row(task: ShardTask, sample: ImageSample, result: Segmentation) -> LabelRecord:
    height, width = sample.image.shape[:2]
    return LabelRecord(
        key=sample.raw.key,
        shard=task.shard.id,
        index=sample.raw.index,
        status=OK,
        width=width,
        height=height,
        label_map=encode_label_map(result.label_map),
        segments=result.segments,
        quality=result.quality,
        image_sha256=sample.sha256,
    )


def _failure(sample: ImageSample, reason: str, error: Exception) -> SampleFailure:
    height, width = sample.image.shape[:2]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return SampleFailure(sample.raw, reason, text, width, height, sample.sha256)


def _failed_row(task: ShardTask, failure: SampleFailure) -> LabelRecord:
    return LabelRecord(
        key=failure.raw.key,
        shard=task.shard.id,
        index=failure.raw.index,
        status=failure.reason,
        error=failure.error,
        width=failure.width,
        height=failure.height,
        image_sha256=failure.sha256,
    )


class Books:
    """The committing side of a worker: what each task has on storage, and which tasks have failed there."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.committed: dict[ShardTask, set[int]] = {}
        self.failed: set[ShardTask] = set()

    def commit(self, work: WindowWork) -> Receipt | ShardFailure | None:
        """Put a window on storage; nothing more of a task whose commit has failed."""
        if work.task in self.failed:
            return None
        records = [work.records[raw.index] for raw in work.samples]
        try:
            if "webdataset" in self.ledger.run.also:
                self.ledger.commit_extra(work.task, work.number, as_webdataset(work.samples, records))
            end = work.samples[-1].end
            receipt = self.ledger.commit(work.task, work.number, records, end, work.seconds)
        except PipelineError as error:
            self.failed.add(work.task)
            return failure_of(work.task, error)
        self.committed.setdefault(work.task, set()).add(work.number)
        return receipt

    def close(self, task: ShardTask, end: TaskEnd) -> TaskDone | ShardFailure | None:
        """A task was read to its end, or as far as it went."""
        mine = self.committed.pop(task, set())
        if task in self.failed:
            self.failed.remove(task)  # it may come back as another attempt
            return None
        if end.error:
            return failure_of(task, end.error)
        if task.last_window is not None:
            return TaskDone(task)
        windows = -(-end.samples // self.ledger.run.window)
        try:
            return TaskDone(task, windows, self.ledger.commit_end(task.shard, windows, end.samples, mine))
        except PipelineError as error:
            return failure_of(task, error)


def failure_of(task: ShardTask, error: PipelineError) -> ShardFailure:
    """An error as the value that goes to the driver."""
    offset = error.offset if isinstance(error, CorruptShard) else None
    return ShardFailure(task, type(error).__name__, str(error)[:500], error.retryable, offset)


def as_webdataset(samples: Sequence[RawSample], records: Sequence[LabelRecord]) -> bytes:
    """A window as a WebDataset tar: the original members, and the label map as `label_map.png` beside them."""
    return write_samples(
        (raw.key, {**raw.members, **({"label_map.png": record.label_map} if record.label_map else {})})
        for raw, record in zip(samples, records, strict=True)
    )
