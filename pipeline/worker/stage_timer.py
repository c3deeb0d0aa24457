"""What a worker does with its time: labelling, or waiting, and what each stage costs the processor.

Counted where it happens; any thread may read the counts at any time. Waiting is measured on the thread that labels,
since an idle device is what costs money:

    task     the reader has nothing to read: the driver has handed over no task
    read     the next sample has not come from storage
    decode   the next sample has come, and its pixels are not decoded yet
    commit   a window is full, and the windows before it are not yet on storage

Processor time is measured on the thread that does the work, for read, decode, label, encode and commit.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter, thread_time
from typing import TypeVar

EXAMPLES = 3  # kept of each kind
T = TypeVar("T")


class Stage(StrEnum):
    """What a worker does; the code of each stage names its stage."""

    TASK = "task"
    READ = "read"
    DECODE = "decode"
    LABEL = "label"
    ENCODE = "encode"
    COMMIT = "commit"


WAITED_FOR = (Stage.TASK, Stage.READ, Stage.DECODE, Stage.COMMIT)
WORKED_ON = (Stage.READ, Stage.DECODE, Stage.LABEL, Stage.ENCODE, Stage.COMMIT)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The counts of a StageTimer at one moment; every figure only grows."""

    images: Mapping[str, int] = field(default_factory=dict)  # rows by status, committed or not yet
    windows: int = 0  # committed
    busy_s: float = 0.0  # labelling
    waited_s: Mapping[str, float] = field(default_factory=dict)  # by stage, see WAITED_FOR
    single: int = 0  # images whose label map is one segment
    segments: int = 0  # of all images
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the last ones: see `row`
    cpu_s: Mapping[str, float] = field(default_factory=dict)  # by stage, see WORKED_ON


def combine(snapshots: Iterable[MetricsSnapshot]) -> MetricsSnapshot:
    """The rows of several workers as one snapshot. Seconds and windows are left out: nobody asks for their sum."""
    images: Counter[str] = Counter()
    examples: dict[str, tuple[str, ...]] = {}
    single, segments = 0, 0
    for snapshot in snapshots:
        images.update(snapshot.images)
        single, segments = single + snapshot.single, segments + snapshot.segments
        for kind, named in snapshot.examples.items():
            examples[kind] = (*examples.get(kind, ()), *named)[-EXAMPLES:]
    return MetricsSnapshot(images, single=single, segments=segments, examples=examples)


class StageTimer:
    """Counts rows and times stages of one worker. Threads may write and read at once; a count costs a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: Counter[str] = Counter()
        self._single, self._segments = 0, 0
        self._examples: dict[str, tuple[str, ...]] = {}
        self._windows = 0
        self._busy_s = 0.0
        self._waited_s: dict[str, float] = {stage.value: 0.0 for stage in WAITED_FOR}
        self._cpu_s: dict[str, float] = {stage.value: 0.0 for stage in WORKED_ON}
        self._taskless_s = 0.0
        self._taskless_since: float | None = None

    def snapshot(self) -> MetricsSnapshot:
        """All counts now."""
        with self._lock:
            return MetricsSnapshot(
                dict(self._images),
                self._windows,
                self._busy_s,
                dict(self._waited_s),
                self._single,
                self._segments,
                dict(self._examples),
                dict(self._cpu_s),
            )

    def row(self, status: str, segments: int | None = None, example: str = "") -> None:
        """A row was made. segments: None where it has no labels. example: names it, as failed, single or many."""
        kind = "failed" if segments is None else "single" if segments == 1 else "many"
        with self._lock:
            self._images[status] += 1
            self._single += segments == 1
            self._segments += segments or 0
            self._examples[kind] = (*self._examples.get(kind, ()), example)[-EXAMPLES:]

    def window(self) -> None:
        """A window was committed."""
        with self._lock:
            self._windows += 1

    def busy(self, seconds: float) -> None:
        """A batch was labelled."""
        with self._lock:
            self._busy_s += seconds

    @contextmanager
    def waiting(self, stage: Stage) -> Iterator[None]:
        """The thread that labels waits while the block runs. For READ, time without a task counts as TASK."""
        with self._lock:
            began, taskless = perf_counter(), self._taskless()
        try:
            yield
        finally:
            with self._lock:
                waited = perf_counter() - began
                of_task = min(waited, self._taskless() - taskless) if stage is Stage.READ else 0.0
                self._waited_s[stage.value] += waited - of_task
                self._waited_s["task"] += of_task

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """This thread works on a stage while the block runs: its processor time counts, whatever it waits does not."""
        began = thread_time()
        try:
            yield
        finally:
            spent = thread_time() - began
            with self._lock:
                self._cpu_s[stage.value] += spent

    def working_through(self, stage: Stage, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the thread that iterates works on the stage from one item to the next."""
        source = iter(items)
        while True:
            with self.working(stage):
                try:
                    item = next(source)
                except StopIteration:
                    return
                yield item

    def handed(self, tasks: Iterable[T]) -> Iterator[T]:
        """Yield the tasks, and measure how long the reader waits for each."""
        source = iter(tasks)
        while True:
            with self._lock:
                self._taskless_since = perf_counter()
            try:
                task = next(source)
            except StopIteration:
                return
            finally:
                with self._lock:
                    self._taskless_s, self._taskless_since = self._taskless(), None
            yield task

    def _taskless(self) -> float:
        """Seconds the reader was without a task, up to now; the lock is held."""
        since = self._taskless_since
        return self._taskless_s + (perf_counter() - since if since is not None else 0.0)
