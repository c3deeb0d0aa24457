"""A window on its way through a worker, and who is told of it."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.messages import Receipt, ShardTask
from pipeline.records import ImageSample, LabelRecord, RawSample
from pipeline.worker.stage_timer import MetricsSnapshot


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """Reading of a task is over. samples: how many the shard has up to here; error: what stopped it early.

    ended: nothing was read, since the shard's end record stands on storage.
    """

    samples: int
    error: PipelineError | None = None
    ended: bool = False


@dataclass(slots=True)
class WindowWork:
    """A window under way: its rows by index, filled as batches come back."""

    task: ShardTask
    number: int
    samples: list[RawSample] = field(default_factory=list)
    records: dict[int, LabelRecord] = field(default_factory=dict)
    waiting: list[ImageSample] = field(default_factory=list)
    encoding: list[Future[None]] = field(default_factory=list)  # one a batch: when it is done, `records` has its rows
    seconds: float = 0.0
    doubtful: bool = False  # the model failed on some of it: by the sample's fault, or the device's


class WorkerObserver(Protocol):
    """Is told of a worker's windows, in the worker's own threads; what it raises ends the worker."""

    def window_began(self, task: ShardTask, number: int) -> None:
        """The model is about to be given the first batch of a window."""

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        """A window stands on storage, and the driver does not know yet. snapshot: the worker's counts by then."""
