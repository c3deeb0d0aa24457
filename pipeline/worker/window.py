"""A window on its way through a worker, how fast it goes, and who is told of it."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.messages import Receipt, ShardTask
from pipeline.records import ImageSample, LabelRecord, RawSample
from pipeline.worker.stage_timer import MetricsSnapshot

HELD_BYTES = 512 << 20  # of decoded images: those that wait for a batch of their shape, and those decoded ahead


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
    waiting: dict[tuple[int, ...], list[ImageSample]] = field(default_factory=dict)  # by the shape of their pass
    held: int = 0  # bytes of theirs
    launched: list[ImageSample] = field(default_factory=list)  # the batch that the device has at hand
    encoding: list[Future[None]] = field(default_factory=list)  # one a batch: when it is done, `records` has its rows
    seconds: float = 0.0
    doubtful: bool = False  # the model failed on some of it: by the sample's fault, or the device's

    @property
    def labelled(self) -> int:
        """Samples that are done with, those without labels included."""
        return len(self.samples) - len(self.launched) - sum(map(len, self.waiting.values()))

    def batch_with(self, sample: ImageSample, most: int, ahead: int) -> list[ImageSample]:
        """Keep a sample for a batch of its shape; the batch that is due now, if any.

        That is one of `most` samples, or the fullest where too much memory is held. ahead: further images in memory.
        """
        shape = () if self.task.probe else sample.image.shape
        self.waiting.setdefault(shape, []).append(sample)
        self.held += sample.image.nbytes
        if len(self.waiting[shape]) < most:
            if self.held + ahead * sample.image.nbytes <= HELD_BYTES:
                return []
            shape = max(self.waiting, key=lambda each: len(self.waiting[each]))
        batch = self.waiting.pop(shape)
        self.held -= sum(each.image.nbytes for each in batch)
        return batch

    def batches_left(self) -> list[list[ImageSample]]:
        """What waits for a fuller batch, in order of the first sample."""
        left, self.waiting, self.held = self.waiting, {}, 0
        return sorted(left.values(), key=lambda batch: batch[0].raw.index)


class Pace:
    """How many seconds a sample takes a worker, with all that it waits for; 0 before the first batch."""

    def __init__(self) -> None:
        self.sample_s = 0.0
        self._began: float | None = None
        self._samples = 0

    def began(self) -> None:
        """A batch is about to be labelled."""
        self._began = monotonic() if self._began is None else self._began

    def ended(self, samples: int) -> None:
        """A batch was labelled."""
        self._samples += samples
        self.sample_s = (monotonic() - (self._began or 0.0)) / self._samples


class WorkerObserver(Protocol):
    """Is told of a worker's windows, in the worker's own threads; what it raises ends the worker."""

    def window_began(self, task: ShardTask, number: int) -> None:
        """The model is about to be given the first batch of a window."""

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        """A window stands on storage, and the driver does not know yet. snapshot: the worker's counts by then."""
