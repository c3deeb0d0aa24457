"""A window on its way through a worker."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from pipeline.errors import PipelineError
from pipeline.messages import ShardTask
from pipeline.records import ImageSample, LabelRecord, RawSample


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """Reading of a task is over. samples: how many the shard has up to here; error: what stopped it early.

    there: nothing was read, since the shard's end record stands on storage.
    """

    samples: int
    error: PipelineError | None = None
    there: bool = False


@dataclass(slots=True)
class WindowWork:
    """A window under way: its rows by place, filled as batches come back."""

    task: ShardTask
    number: int
    samples: list[RawSample] = field(default_factory=list)
    records: dict[int, LabelRecord] = field(default_factory=dict)
    waiting: list[ImageSample] = field(default_factory=list)
    encoding: list[Future[None]] = field(default_factory=list)  # of a batch each: rows are there when it is done
    seconds: float = 0.0
    doubtful: bool = False  # the model failed on some of it: by the sample's fault, or the device's
