"""Everything the pipeline raises on purpose.

PipelineError
├── ConfigError     the run cannot start; the message says what to change
├── StorageError    storage refused after every retry; another attempt may pass
├── StorageFull     no space is left; the run stops, resumable
├── WorkerLost      the worker died before it answered; another attempt may pass
│   └── NoWorker    none can be started: another start would end the same way
├── OutOfMemory     there is no room for what the model needs; fewer or smaller images may fit
├── RayLost         a process of Ray that the run rests on is gone, or does not answer; the run can be resumed
├── Unfit           the worker computes otherwise than the others; it must get no work
├── Drained         the worker was asked to leave and did; costs no attempt
├── Overtaken       another driver is at work on the same shard; costs no attempt
├── CorruptShard    the shard's own bytes are bad; salvaged up to the damage, then quarantined
├── ShardChanged    the shard is no longer the one that was pinned at the start
├── Stopped         going on would only burn money; the run can be resumed
│   └── WouldRepeat the same command would only be stopped again: something must be changed first
├── Unhandled       our own code failed on what a shard holds; tried again, then given up, and the others go on
└── CommitConflict  an object that is not ours stands where a window belongs
"""


class PipelineError(Exception):
    """`retryable`: whether the same work could succeed when tried again. `resumable`: whether the same command goes on
    where this stopped it, be it after a while or on other machines.
    """

    retryable = False
    resumable = False


class ConfigError(PipelineError):
    """The run cannot start as asked."""


class StorageError(PipelineError):
    """Storage failed beyond its own retries."""

    retryable = True
    resumable = True


class StorageFull(PipelineError):
    """The output has no room for another object."""

    resumable = True


class WorkerLost(PipelineError):
    """A process that held work is gone."""

    retryable = True
    resumable = True


class NoWorker(WorkerLost):
    """No worker can be started: the machine, the model or what is installed must change first."""

    retryable = False
    resumable = False


class OutOfMemory(PipelineError):
    """A device, or this machine, has no room for what a model needs."""

    retryable = True
    resumable = True


class RayLost(PipelineError):
    """A Ray that is of no use any more."""

    retryable = True
    resumable = True


class Unfit(PipelineError):
    """A worker that computes otherwise than the others."""


class Drained(PipelineError):
    """A worker left in good order, with work still in its hands."""

    retryable = True


class Overtaken(PipelineError):
    """A window was there already when this worker came to commit it: somebody else is at work on the same shard."""

    retryable = True


class CorruptShard(PipelineError):
    """The bytes of a shard are damaged. offset: how many of them were sound."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset

    def __reduce__(self) -> tuple[type["CorruptShard"], tuple[str, int]]:
        return CorruptShard, (str(self), self.offset)


class ShardChanged(PipelineError):
    """Size or etag of a shard differ from its pin."""


class Unhandled(PipelineError):
    """A shard that our own code failed on: a fault of ours, which must not cost the other shards."""

    retryable = True


class CommitConflict(PipelineError):
    """A window's place is taken by labels of another input or configuration."""


class Stopped(PipelineError):
    """The run cannot go on as things are."""

    resumable = True


class WouldRepeat(Stopped):
    """The run cannot go on before something is changed: the same command would meet the same again."""

    resumable = False
