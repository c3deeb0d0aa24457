"""What a worker does with its time: busy labelling, or waiting, and for which stage.

Counted where it happens, for anybody to read at any time. The time of the thread that labels is the price; only its
waiting counts:

    task     the reader has nothing to read: the driver has handed nothing over
    read     the next sample has not come from storage
    decode   it has come, and is not yet pixels
    commit   a window is full, and the windows before it are not yet on storage
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

STAGES = ("task", "read", "decode", "commit")
EXAMPLES = 3  # kept of each kind
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """A meter at one moment; every figure only grows."""

    images: Mapping[str, int] = field(default_factory=dict)  # rows by status, committed or not yet
    windows: int = 0  # committed
    busy_s: float = 0.0  # labelling
    waited_s: Mapping[str, float] = field(default_factory=dict)  # by stage
    single: int = 0  # images whose label map is one segment
    segments: int = 0  # of all images
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the last ones: see `row`


def combine(readings: Iterable[MetricsSnapshot]) -> MetricsSnapshot:
    """What several workers have made. Seconds and windows are left out: nobody asks for their sum."""
    images: Counter[str] = Counter()
    examples: dict[str, tuple[str, ...]] = {}
    single, segments = 0, 0
    for reading in readings:
        images.update(reading.images)
        single, segments = single + reading.single, segments + reading.segments
        for kind, said in reading.examples.items():
            examples[kind] = (*examples.get(kind, ()), *said)[-EXAMPLES:]
    return MetricsSnapshot(images, single=single, segments=segments, examples=examples)


class StageTimer:
    """Counts of one worker. Threads may write and read at once; a count costs a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: Counter[str] = Counter()
        self._single, self._segments = 0, 0
        self._examples: dict[str, tuple[str, ...]] = {}
        self._windows = 0
        self._busy_s = 0.0
        self._waited_s: dict[str, float] = dict.fromkeys(STAGES, 0.0)
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
    def waiting(self, stage: str) -> Iterator[None]:
        """The thread that labels waits while the block runs. For `read`, time without a task is `task`."""
        with self._lock:
            began, taskless = perf_counter(), self._taskless()
        try:
            yield
        finally:
            with self._lock:
                waited = perf_counter() - began
                of_task = min(waited, self._taskless() - taskless) if stage == "read" else 0.0
                self._waited_s[stage] += waited - of_task
                self._waited_s["task"] += of_task

    def handed(self, tasks: Iterable[T]) -> Iterator[T]:
        """The same tasks; the reader's waiting for the next one is noted."""
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
