"""A batch of images becomes rows: labels where the model gives them, the reason where it does not."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from diffseg.types import AttentionError, Segmentation
from pipeline.errors import OutOfMemory, PipelineError
from pipeline.logs.text import told
from pipeline.messages import ShardTask
from pipeline.records import OK, ImageSample, LabelRecord, RawSample, SampleFailure, legible
from pipeline.table.label_map import encode_label_map
from pipeline.table.leaf_map import encode_leaf_map
from pipeline.table.trees import encode_tree, encode_vectors
from pipeline.worker.device_errors import device_errors, release_memory

logger = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What a worker needs of a model; `diffseg.DiffSeg` is one. batch_size: images a forward pass takes."""

    batch_size: int

    def segment(self, images: Sequence[Any]) -> list[Segmentation]:
        """Label images: uint8 [H, W, 3] of any sizes, or prepared.

        Raises AttentionError, with the images that gave no attention.
        """
        ...

    def prepare(self, image: np.ndarray) -> Any:
        """All of an image's work that needs no device, with `shape` (images of one share a pass) and `nbytes`."""
        return image

    def launch(self, images: Sequence[Any]) -> bool:
        """Start the pass over prepared images that `segment` is given soon; False where nothing can start."""
        return False


class AdaptiveBatches(Segmenter):
    """A segmenter that halves its batches where memory runs out; batch_size stays as small as it became."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter, self.batch_size = segmenter, segmenter.batch_size

    def prepare(self, image: np.ndarray) -> Any:
        """See `Segmenter.prepare`."""
        return self._segmenter.prepare(image)

    def launch(self, images: Sequence[Any]) -> bool:
        """Start a batch's pass; False where it cannot start, as for want of memory: `segment` will see to it.

        Raises WorkerLost and ConfigError as `device_errors` does.
        """
        try:
            with device_errors():
                return self._segmenter.launch(images)
        except OutOfMemory:
            release_memory()
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - of one image, which `segment` finds
            logger.debug("a batch of %d is labelled without a launch: %s", len(images), told(error))
        return False

    def segment(self, images: Sequence[Any]) -> list[Segmentation]:
        """Label a batch, in halves where it does not fit.

        Raises OutOfMemory where one image alone does not fit, WorkerLost and ConfigError as `device_errors` does, and
        what the segmenter raises.
        """
        try:
            with device_errors():
                return self._segmenter.segment(images)
        except OutOfMemory as error:
            if len(images) == 1:
                raise
            logger.warning("batches are halved from %d images on: %s", len(images), error)
        release_memory()
        half = len(images) // 2
        self.batch_size = min(self.batch_size, half)
        first = self.segment(images[:half])
        try:
            return first + self.segment(images[half:])
        except AttentionError as error:
            raise AttentionError(str(error), tuple(half + index for index in error.images)) from error


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose labels are encoded later, by another thread, so that the device need not wait."""

    record: LabelRecord  # without what is encoded
    labels: Segmentation | None = None

    def encoded(self) -> LabelRecord:
        """The row as it is written."""
        return self.record if self.labels is None else with_labels(self.record, self.labels)


def with_labels(record: LabelRecord, labels: Segmentation) -> LabelRecord:
    """A row with the labels of its image, encoded."""
    return replace(
        record,
        label_map=encode_label_map(labels.label_map),
        segments=labels.segments,
        quality=labels.quality,
        leaf_map=None if labels.leaf_map is None else encode_leaf_map(labels.leaf_map),
        tree=None if labels.tree is None else encode_tree(labels.tree),
        vectors=None if labels.vectors is None else encode_vectors(labels.vectors),
        ridges=None if labels.ridges is None else labels.ridges.tobytes(),
        words=None if labels.words is None else labels.words.tobytes(),
    )


def label_batch(segmenter: Segmenter, task: ShardTask, batch: Sequence[ImageSample]) -> list[Row]:
    """Rows for a batch. A sample that the model cannot label gets a row with the reason; the rest is labelled again.

    Raises PipelineError where not a sample but the device or the setup is to blame.
    """
    if not batch:
        return []
    try:
        results = segmenter.segment([sample.image for sample in batch])
    except AttentionError as error:
        logger.info("the model gave no attention: %s", error)
        bad = set(error.images) or set(range(len(batch)))
        text = f"{type(error).__name__}: {error}"
        failed = [_failed(task, batch[i], "model_nan", text) for i in sorted(bad)]
        return failed + label_batch(segmenter, task, [sample for i, sample in enumerate(batch) if i not in bad])
    except Exception as error:
        if isinstance(error, PipelineError) and not isinstance(error, OutOfMemory):
            raise
        if len(batch) == 1:
            text = told(error)
            logger.exception("sample %d (%s) has no labels: %s", batch[0].raw.index, batch[0].raw.key, text)
            return [_failed(task, batch[0], "model_error", text)]
        half = len(batch) // 2  # one bad sample: halves find out which
        return label_batch(segmenter, task, batch[:half]) + label_batch(segmenter, task, batch[half:])
    return [
        Row(_record(task, its.raw, OK, its.size, its.sha256, segments=made.segments, quality=made.quality), made)
        for its, made in zip(batch, results, strict=True)
    ]


def _failed(task: ShardTask, sample: ImageSample, reason: str, text: str) -> Row:
    text = " ".join(text.split())[:300]
    return Row(failed_row(task, SampleFailure(sample.raw, reason, text, sample.size, sample.sha256)))


def failed_row(task: ShardTask, failure: SampleFailure) -> LabelRecord:
    """The row of a sample that has no labels."""
    error = legible(failure.error)
    return _record(task, failure.raw, failure.reason, failure.size, failure.sha256, error=error)


def _record(
    task: ShardTask, raw: RawSample, status: str, size: tuple[int, int] | None, sha256: str | None, **rest: Any
) -> LabelRecord:
    width, height = size or (None, None)
    of = (raw.key, task.shard.id, raw.index, status)
    return LabelRecord(*of, width=width, height=height, image_sha256=sha256, kept=raw.kept, **rest)
