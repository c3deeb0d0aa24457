"""Images labelled at several thresholds, or with trees, from one pass of the model each, with every stage timed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import perf_counter

import numpy as np
import torch

from diffseg.models.attention import AttentionMaps
from diffseg.segmenter import DiffSeg, Model
from diffseg.types import Float, Segmentation, UInt8
from pipeline.gallery.html_page import picture_of
from pipeline.messages import ShardTask
from pipeline.records import OK, ImageSample, LabelRecord, SampleFailure, Shard
from pipeline.worker.labeling import AdaptiveBatches, Segmenter, failed_row, label_batch, with_labels

PILOT = Shard("pilot", "", 0, "")  # the rows of a pilot form one window, whatever shards they come from

Thresholds = tuple[float, ...]


def named(thresholds: Thresholds) -> str:
    """Thresholds as `--threshold` takes them: a single number where all iterations share it."""
    return f"{thresholds[0]:g}" if len(set(thresholds)) == 1 else ",".join(f"{tau:g}" for tau in thresholds)


@dataclass(frozen=True, slots=True)
class Rates:
    """Images a second of each stage in one worker. merge: at one threshold. read: uncached; a job is faster."""

    read: float | None
    decode: float  # of one thread
    decode_threads: int
    model: float
    merge: float
    encode: float
    shared_core: bool  # no GPU: the stages share the core of their worker

    @property
    def label(self) -> float:
        """The rate of labelling, which the other stages run beside."""
        return 1 / (1 / self.model + 1 / self.merge + 1 / self.encode)

    @property
    def worker(self) -> float:
        """The rate of a worker that never waits for storage."""
        if self.shared_core:
            return 1 / (1 / self.label + 1 / self.decode)
        return min(self.label, self.decode * self.decode_threads)


class Timed:
    """Wraps a model and times its passes."""

    def __init__(self, model: Model) -> None:
        self._model, self.seconds = model, 0.0
        self.config, self.device, self.batch_size = model.config, model.device, model.batch_size

    def attend(self, pixels: Float[torch.Tensor, "B 3 H W"], *, features: bool = False) -> AttentionMaps:
        """One forward pass."""
        began = perf_counter()
        maps = self._model.attend(pixels, features=features)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += perf_counter() - began
        return maps


class Comparing(Segmenter):
    """A segmenter that labels at every threshold, or as configured where there is none, and keeps all results.

    It returns the first ones. seconds: spent on it.
    """

    def __init__(self, segmenter: DiffSeg, thresholds: Sequence[Thresholds]) -> None:
        self._segmenter, self.thresholds = segmenter, thresholds
        self.batch_size = segmenter.batch_size
        self.kept: dict[int, list[Segmentation]] = {}  # by the identity of the image
        self.seconds = 0.0

    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label a batch."""
        began = perf_counter()
        compared, segmenter = self.thresholds, self._segmenter
        results = segmenter.compare(images, compared) if compared else [segmenter.segment(images)]
        self.seconds += perf_counter() - began
        for image, *of_image in zip(images, *results, strict=True):
            self.kept[id(image)] = of_image
        return results[0]


class Labelling:
    """Turns samples into rows at every threshold, batch by batch.

    sources: of each sample, shard URL and index. rows: by a sample's place among them, one a threshold, or a single one
    without labels. photos: the reduced ones that are kept, by place. photo_every: one in so many samples keeps one.
    """

    def __init__(self, timed: Timed, comparing: Comparing, photo_every: int = 1) -> None:
        self._timed, self._comparing, self._photo_every = timed, comparing, photo_every
        self._adaptive = AdaptiveBatches(comparing)
        self._batch: list[ImageSample] = []
        self._encode_s = 0.0
        self._warm: Float[np.ndarray, "4"] | None = None  # what was spent with the first batch
        self.rows: dict[int, tuple[LabelRecord, ...]] = {}
        self.photos: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
        self.sources: list[tuple[str, int]] = []
        self.images = 0

    def take(self, shard: Shard, sample: ImageSample | SampleFailure) -> None:
        """Take the next sample; it is labelled when its batch is full."""
        raw = replace(sample.raw, index=len(self.sources), members={})
        self.sources.append((shard.url, sample.raw.index))
        if isinstance(sample, SampleFailure):
            self.rows[raw.index] = (failed_row(ShardTask(PILOT), replace(sample, raw=raw)),)
            return
        self._batch.append(replace(sample, raw=raw))
        if len(self._batch) >= self._adaptive.batch_size:
            self.flush()

    def flush(self) -> None:
        """Label the samples that wait for a full batch."""
        batch, self._batch = self._batch, []
        images = {sample.raw.index: sample.image for sample in batch}
        for row in label_batch(self._adaptive, ShardTask(PILOT), batch):
            record = row.record  # of the first threshold
            image = images[record.index]
            self.rows[record.index] = self._at_each(record, self._comparing.kept.get(id(image), []))
            if record.index % self._photo_every == 0:
                self.photos[record.index] = np.asarray(picture_of(image))
        self._comparing.kept.clear()
        self.images += len(batch)
        if self._warm is None and batch:
            self._warm = self._spent()

    def _at_each(self, record: LabelRecord, results: Sequence[Segmentation]) -> tuple[LabelRecord, ...]:
        if record.status != OK:
            return (record,)
        began = perf_counter()
        rows = tuple(with_labels(record, result) for result in results)
        self._encode_s += perf_counter() - began
        return rows

    def _spent(self) -> Float[np.ndarray, "4"]:
        """Seconds of the model, of it and merging, and of encoding, and images."""
        return np.array([self._timed.seconds, self._comparing.seconds, self._encode_s, self.images])

    def rates(self, read_s: Sequence[float], decode_s: Sequence[float], threads: int, *, shared_core: bool) -> Rates:
        """The rates measured after the first batch. read_s, decode_s: seconds of single images, in one thread."""
        spent, warm = self._spent(), self._warm
        if warm is not None and warm[-1] < spent[-1]:
            spent -= warm  # of a single batch rates with its warming up are better than none
        model, compare, encode, images = spent.tolist()
        labels = images * max(1, len(self._comparing.thresholds))
        return Rates(
            read=1 / fmean(read_s) if read_s else None,
            decode=1 / fmean(decode_s),
            decode_threads=threads,
            model=_rate(images, model),
            merge=_rate(labels, compare - model),
            encode=_rate(labels, encode),
            shared_core=shared_core,
        )


def _rate(count: float, seconds: float) -> float:
    return count / max(seconds, 1e-9)
