"""Everything the pipeline raises on purpose.

PipelineError
├── ConfigError         the run cannot start; the message says what to change
├── StorageError        storage refused after every retry; another attempt may pass
│   └── StorageFull     no space is left; the run stops, resumable
├── ShardError          a shard cannot be read as it was pinned; another attempt would fail too
│   ├── CorruptShard    its bytes are bad; salvaged up to the damage, then quarantined
│   └── ShardChanged    its size or etag differ from its pin
├── CommitConflict      an object that is not ours stands where a window belongs
├── AlreadyCommitted    another driver works on the same shard; costs no attempt
├── Unhandled           our own code failed on what a shard holds; tried again, then given up, and the others go on
├── OutOfMemory         there is no room for what the model needs; fewer or smaller images may fit
├── WorkerLost          the worker died before it answered; another attempt may pass
│   └── NoWorker        none can be started: a replacement would fail too
├── DeviceMismatch      the worker's labels of the reference image differ from the run's; it gets no work
├── Drained             the worker was asked to leave and did; costs no attempt
├── RayLost             a process of Ray that the run needs is gone or does not answer; the run can be resumed
└── Stopped             the run cannot go on as things are; it can be resumed
    └── WouldRepeat     the same command would stop again: something must be changed first
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

_FORMER = {"DeviceMismatch": "Unfit", "AlreadyCommitted": "Overtaken"}  # names of classes in version 0.1


class PipelineError(Exception):
    """Base of all errors here.

    kind: how the driver tells it from others, and what `failures/*.json` and metrics call it. retryable: the same work
    may succeed when it is tried again. resumable: the same command continues the run, after a while or on other
    machines. expected: the message says all there is to know, since the input or a machine is at fault; else the
    traceback is kept.
    """

    kind: ClassVar[str] = "PipelineError"
    retryable: ClassVar[bool] = False
    resumable: ClassVar[bool] = False
    expected: ClassVar[bool] = False

    def __init_subclass__(
        cls, retryable: bool | None = None, resumable: bool | None = None, expected: bool | None = None
    ) -> None:
        cls.kind = _FORMER.get(cls.__name__, cls.__name__)
        cls.retryable = cls.retryable if retryable is None else retryable
        cls.resumable = cls.resumable if resumable is None else resumable
        cls.expected = cls.expected if expected is None else expected


class ConfigError(PipelineError, expected=True):
    """The run cannot start as asked."""


@contextmanager
def under_way() -> Iterator[None]:
    """Where storage refuses what it took when the run began, the run stops, and can be resumed. Raises Stopped."""
    try:
        yield
    except ConfigError as error:
        raise Stopped(str(error)) from error


class StorageError(PipelineError, retryable=True, resumable=True):
    """Storage failed beyond its own retries."""


class StorageFull(StorageError, retryable=False, expected=True):
    """The output has no room for another object."""


class WorkerLost(PipelineError, retryable=True, resumable=True):
    """A process that held work is gone."""


class NoWorker(WorkerLost, retryable=False, resumable=False, expected=True):
    """No worker can be started: the machine, the model or what is installed must change first.

    given: it is the model or the machine that the run was given, which no other try would mend.
    """

    given = False


class OutOfMemory(PipelineError, retryable=True, resumable=True):
    """A device, or this machine, has no room for what a model needs."""


class RayLost(PipelineError, retryable=True, resumable=True, expected=True):
    """Ray, or a process of it that the run needs, is gone or does not answer."""


class DeviceMismatch(PipelineError):
    """A worker's device computes other labels than the run's reference image has."""


class Drained(PipelineError, retryable=True, expected=True):
    """A worker left because it was asked to; the tasks it held are still to be done."""


class AlreadyCommitted(PipelineError, retryable=True, expected=True):
    """Another driver committed the window first: it works on the same shard."""


class ShardError(PipelineError):
    """A shard is not what was pinned, or cannot be read to its end."""


class CorruptShard(ShardError, expected=True):
    """The bytes of a shard are damaged. offset: how many of them were sound."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset

    def __reduce__(self) -> tuple[type["CorruptShard"], tuple[str, int]]:
        return CorruptShard, (str(self), self.offset)


class ShardChanged(ShardError, expected=True):
    """Size or etag of a shard differ from its pin."""


class Unhandled(PipelineError, retryable=True):
    """Our own code failed on what a shard holds. The other shards must not suffer from it."""


class CommitConflict(PipelineError):
    """Labels of another input or configuration stand under the name of a window."""


class Stopped(PipelineError, resumable=True, expected=True):
    """The run cannot go on as things are."""


class WouldRepeat(Stopped, resumable=False):
    """The run cannot go on before something is changed: the same command would stop again."""
