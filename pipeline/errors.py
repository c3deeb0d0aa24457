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

from enum import StrEnum
from typing import ClassVar


class FailureKind(StrEnum):
    """Why a task failed: one kind for each error class below. Its value is what `failures/*.json` and metrics show."""

    PIPELINE_ERROR = "PipelineError"
    CONFIG_ERROR = "ConfigError"
    STORAGE_ERROR = "StorageError"
    STORAGE_FULL = "StorageFull"
    WORKER_LOST = "WorkerLost"
    NO_WORKER = "NoWorker"
    OUT_OF_MEMORY = "OutOfMemory"
    RAY_LOST = "RayLost"
    DEVICE_MISMATCH = "Unfit"  # the class's name in version 0.1
    DRAINED = "Drained"
    ALREADY_COMMITTED = "Overtaken"  # likewise
    SHARD_ERROR = "ShardError"
    CORRUPT_SHARD = "CorruptShard"
    SHARD_CHANGED = "ShardChanged"
    UNHANDLED = "Unhandled"
    COMMIT_CONFLICT = "CommitConflict"
    STOPPED = "Stopped"
    WOULD_REPEAT = "WouldRepeat"


class PipelineError(Exception):
    """Base of all errors here.

    kind: how the driver tells it from others. retryable: the same work may succeed when it is tried again. resumable:
    the same command continues the run, after a while or on other machines. expected: the message says all there is to
    know, since the input or a machine is at fault; else the traceback is kept.
    """

    kind: ClassVar[FailureKind] = FailureKind.PIPELINE_ERROR
    retryable = False
    resumable = False
    expected = False


class ConfigError(PipelineError):
    """The run cannot start as asked."""

    kind = FailureKind.CONFIG_ERROR
    expected = True


class StorageError(PipelineError):
    """Storage failed beyond its own retries."""

    kind = FailureKind.STORAGE_ERROR
    retryable = True
    resumable = True


class StorageFull(StorageError):
    """The output has no room for another object."""

    kind = FailureKind.STORAGE_FULL
    retryable = False
    resumable = True
    expected = True


class WorkerLost(PipelineError):
    """A process that held work is gone."""

    kind = FailureKind.WORKER_LOST
    retryable = True
    resumable = True


class NoWorker(WorkerLost):
    """No worker can be started: the machine, the model or what is installed must change first."""

    kind = FailureKind.NO_WORKER
    retryable = False
    resumable = False
    expected = True


class OutOfMemory(PipelineError):
    """A device, or this machine, has no room for what a model needs."""

    kind = FailureKind.OUT_OF_MEMORY
    retryable = True
    resumable = True


class RayLost(PipelineError):
    """Ray, or a process of it that the run needs, is gone or does not answer."""

    kind = FailureKind.RAY_LOST
    retryable = True
    resumable = True
    expected = True


class DeviceMismatch(PipelineError):
    """A worker's device computes other labels than the run's reference image has."""

    kind = FailureKind.DEVICE_MISMATCH


class Drained(PipelineError):
    """A worker left because it was asked to; the tasks it held are still to be done."""

    kind = FailureKind.DRAINED
    retryable = True
    expected = True


class AlreadyCommitted(PipelineError):
    """Another driver committed the window first: it works on the same shard."""

    kind = FailureKind.ALREADY_COMMITTED
    retryable = True
    expected = True


class ShardError(PipelineError):
    """A shard is not what was pinned, or cannot be read to its end."""

    kind = FailureKind.SHARD_ERROR


class CorruptShard(ShardError):
    """The bytes of a shard are damaged. offset: how many of them were sound."""

    kind = FailureKind.CORRUPT_SHARD
    expected = True

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset

    def __reduce__(self) -> tuple[type["CorruptShard"], tuple[str, int]]:
        return CorruptShard, (str(self), self.offset)


class ShardChanged(ShardError):
    """Size or etag of a shard differ from its pin."""

    kind = FailureKind.SHARD_CHANGED
    expected = True


class Unhandled(PipelineError):
    """Our own code failed on what a shard holds. The other shards must not suffer from it."""

    kind = FailureKind.UNHANDLED
    retryable = True


class CommitConflict(PipelineError):
    """Labels of another input or configuration stand under the name of a window."""

    kind = FailureKind.COMMIT_CONFLICT


class Stopped(PipelineError):
    """The run cannot go on as things are."""

    kind = FailureKind.STOPPED
    resumable = True
    expected = True


class WouldRepeat(Stopped):
    """The run cannot go on before something is changed: the same command would stop again."""

    kind = FailureKind.WOULD_REPEAT
    resumable = False
