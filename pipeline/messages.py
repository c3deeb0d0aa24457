"""Messages between the driver and its workers: orders, tasks, heartbeats, receipts and failures, each under 1 KB.

A failure whose traceback is kept is under 6 KB.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from pipeline.records import Shard


@dataclass(frozen=True, slots=True)
class Probe:
    """How a window that kills workers is labelled, see `driver.poison`. Suspect: samples first..last, both included."""

    first: int
    last: int
    poison: tuple[int, ...] = ()  # indices of samples known to kill

    def pieces(self, indices: Iterable[int]) -> Iterator[list[int]]:
        """The order in which the window is labelled: the suspects in two halves, then the samples around them.

        indices: of the window's samples; known poison is left out.
        """
        healthy = [index for index in indices if index not in self.poison]
        inside = [index for index in healthy if self.first <= index <= self.last]
        half = (len(inside) + 1) // 2
        before = [index for index in healthy if index < self.first]
        after = [index for index in healthy if index > self.last]
        yield from (piece for piece in (inside[:half], inside[half:], before, after) if piece)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker is working on: samples first..last of a window. probed: told before any of them was touched.

    indices: the samples, where they are not all of first..last.
    """

    shard: str
    window: int
    first: int
    last: int
    probed: bool = False
    indices: tuple[int, ...] = ()

    @property
    def samples(self) -> str:
        """The samples, for people."""
        return ", ".join(map(str, self.indices)) or f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Windows of one shard for one worker: first_window..last_window, both included; None: to the end of the shard."""

    shard: Shard
    first_window: int = 0
    last_window: int | None = None
    revision: int = 0  # 0: first labelling; n: the n-th retry of these windows, which writes files r<n>
    attempt: int = 1
    probe: Probe | None = None  # for the only window of a task that is labelled piece by piece


@dataclass(frozen=True, slots=True)
class Receipt:
    """A window was committed."""

    shard: str
    window: int
    rows: int
    failed: tuple[tuple[str, int], ...]  # rows by status, other than ok
    end: int  # bytes of the shard accounted for up to here
    seconds: float  # labelling
    wasted: bool = False  # another attempt had committed it first
    example: str | None = None  # one error, for the progress line


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task was done. windows: how many the whole shard has, where its end was reached."""

    task: ShardTask
    windows: int | None = None
    ended: bool = False  # the shard's end record stands on storage


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A task stopped before its end. The windows that it committed stay."""

    task: ShardTask
    kind: str  # of the error, see `errors.PipelineError`
    error: str
    retryable: bool
    offset: int | None = None  # of damage, in bytes
    heartbeats: tuple[Heartbeat, ...] = ()  # the last ones of a worker that died
    traceback: str = ""  # its end; empty where the error says all there is to know


Outcome: TypeAlias = Receipt | TaskDone | ShardFailure


class EndKind(Enum):
    """How a worker ended."""

    DRAINED = "drained"  # it left because it was asked to
    LOST = "lost"  # it died, failed or hung; a replacement may do better
    PERMANENT = "permanent"  # it failed, and a replacement would fail too


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """A worker is gone, or must go. traceback: the end of it, where the error may be ours."""

    kind: EndKind
    reason: str
    traceback: str = ""


@dataclass(slots=True)
class Orders:
    """What a pool is to do with its workers, by name, in this order."""

    stop: dict[str, str] = field(default_factory=dict)  # why
    start: list[str] = field(default_factory=list)
    drain: dict[str, float] = field(default_factory=dict)  # seconds that are left
    ask: dict[str, Sequence[ShardTask]] = field(default_factory=dict)  # tasks handed over with the question
    blocked_nodes: frozenset[str] = frozenset()  # where none may be started
