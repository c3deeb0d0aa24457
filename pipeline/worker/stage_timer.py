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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
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


@dataclass(slots=True)
class MetricsSnapshot:
    """The counts of a StageTimer at one moment; every figure only grows."""

    images: Counter[str] = field(default_factory=Counter)  # rows by status, committed or not yet
    windows: int = 0  # committed
    busy_s: float = 0.0  # labelling
    waited_s: dict[str, float] = field(default_factory=dict)  # by stage, see WAITED_FOR
    single: int = 0  # images whose label map is one segment
    segments: int = 0  # of all images
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the last ones: see `row`
    cpu_s: dict[str, float] = field(default_factory=dict)  # by stage, see WORKED_ON
    retries: int = 0  # requests to storage that its process has sent once more

    @property
    def rows(self) -> int:
        """Samples with a row, labelled or not."""
        return self.images.total()

    def add(self, other: "MetricsSnapshot") -> None:
        """Take in the rows and retries of another worker, not its seconds and windows: nobody asks for their sum."""
        self.images.update(other.images)
        self.single, self.segments = self.single + other.single, self.segments + other.segments
        self.retries += other.retries
        for kind, named in other.examples.items():
            self.examples[kind] = (*self.examples.get(kind, ()), *named)[-EXAMPLES:]


class StageTimer:
    """Counts rows and times stages of one worker. Threads may write and read at once; a count costs a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        waited_s, cpu_s = (dict.fromkeys(map(str, stages), 0.0) for stages in (WAITED_FOR, WORKED_ON))
        self._made = MetricsSnapshot(waited_s=waited_s, cpu_s=cpu_s)
        self._taskless_s = 0.0
        self._taskless_since: float | None = None

    @property
    def rows(self) -> int:
        """Samples with a row, committed or not, so that progress is seen between commits."""
        return self._made.rows

    def snapshot(self) -> MetricsSnapshot:
        """All counts now."""
        with self._lock:
            return deepcopy(self._made)

    def row(self, status: str, segments: int | None = None, example: str = "") -> None:
        """A row was made. segments: None where it has no labels. example: names it, as failed, single or many."""
        kind = "failed" if segments is None else "single" if segments == 1 else "many"
        with self._lock:
            made = self._made
            made.images[status] += 1
            made.single += segments == 1
            made.segments += segments or 0
            made.examples[kind] = (*made.examples.get(kind, ()), example)[-EXAMPLES:]

    def window(self) -> None:
        """A window was committed."""
        with self._lock:
            self._made.windows += 1

    def busy(self, seconds: float) -> None:
        """A batch was labelled."""
        with self._lock:
            self._made.busy_s += seconds

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
                self._made.waited_s[stage] += waited - of_task
                self._made.waited_s[Stage.TASK] += of_task

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """This thread works on a stage while the block runs: its processor time counts, whatever it waits does not."""
        began = thread_time()
        try:
            yield
        finally:
            spent = thread_time() - began
            with self._lock:
                self._made.cpu_s[stage] += spent

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
