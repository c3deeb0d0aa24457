"""What the driver and its workers tell each other: tasks, heartbeats, receipts and failures, each under 1 KB.

A failure whose traceback is kept is under 6 KB.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from pipeline.errors import FailureKind
from pipeline.records import Shard


@dataclass(frozen=True, slots=True)
class Probe:
    """How a window that kills workers is labelled: see `suspects`. Indices first..last, both included, are suspect."""

    first: int
    last: int
    poison: tuple[int, ...] = ()  # indices known to kill


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker has in hand: indices first..last of a window. probed: said before they were touched."""

    shard: str
    window: int
    first: int
    last: int
    probed: bool = False


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Windows of one shard for one worker; last_window is included, None means to the end of the shard."""

    shard: Shard
    first_window: int = 0
    last_window: int | None = None
    revision: int = 0  # 0: first labelling; n: the n-th retry of these windows, which writes files r<n>
    attempt: int = 1
    probe: Probe | None = None  # labelled apart, piece after piece; its window is the only one

    def retry(self) -> "ShardTask":
        """The same work once more."""
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A window stands on storage."""

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
    """A task was read to its end. windows: of the whole shard, where the end was reached."""

    task: ShardTask
    windows: int | None = None
    ended: bool = False  # the shard's end record stands on storage


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A task stopped. What it had committed stays."""

    task: ShardTask
    kind: FailureKind
    error: str
    retryable: bool
    offset: int | None = None  # of damage, in bytes
    heartbeats: tuple[Heartbeat, ...] = ()  # of a worker that died: what it had in hand
    traceback: str = ""  # its end; empty where the error says all there is to know


Outcome: TypeAlias = Receipt | TaskDone | ShardFailure
