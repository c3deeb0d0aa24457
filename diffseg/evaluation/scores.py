"""Scores of label maps: of single images, and of a data set with confidence intervals.

`matching` assigns segments to classes, `partition` compares partitions whatever their ids; this module brings
prediction and truth to one view, calls both, and averages.
Letters: C classes, I images, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from diffseg.evaluation.bootstrap import Interval, mean_interval, pooled_intervals
from diffseg.evaluation.matching import Counts, assign, confusion
from diffseg.evaluation.partition import Outline, adjusted_rand, boundary_f, covering, overlaps
from diffseg.types import IGNORE, Int, Integer

MEASURES = ("covering", "ari", "boundary_f", "miou", "accuracy", "segments", "regions")


@dataclass(frozen=True, slots=True)
class View:
    """The window of an image in which prediction and truth are compared, and the size they are brought to."""

    source: tuple[int, int]  # height, width of the image
    corner: tuple[int, int]  # top, left of the window in it
    window: tuple[int, int]  # height, width
    size: tuple[int, int]  # height, width it is sampled at

    def sample(self, label_map: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "H W"]:
        """Read a label map of the whole image, of any resolution, at the pixels of this view.

        Nearest with pixel centres at halves: torch's `nearest-exact` where the label map is as large as the image.
        """
        rows, columns = (self._nearest(axis, label_map.shape[axis]) for axis in (0, 1))
        sampled: np.ndarray = label_map[rows[:, None], columns[None, :]]
        return sampled

    def _nearest(self, axis: int, length: int) -> Int[np.ndarray, " n"]:
        scale = np.float32(self.window[axis]) / np.float32(self.size[axis])  # torch computes in single precision too
        centre = (np.arange(self.size[axis], dtype=np.float32) + np.float32(0.5)) * scale
        centre = self.corner[axis] + centre.astype(np.float64)
        nearest = np.floor(centre * (length / self.source[axis])).astype(np.int64)
        return np.minimum(nearest, length - 1)


def square_view(height: int, width: int, side: int = 512) -> View:
    """The view of the published protocol: the centre square, resized to side x side."""
    short = min(height, width)
    return View((height, width), ((height - short) // 2, (width - short) // 2), (short, short), (side, side))


def whole_view(height: int, width: int) -> View:
    """The whole image at its own size."""
    return View((height, width), (0, 0), (height, width), (height, width))


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The scores of one image; with several annotators the mean over them.

    miou, accuracy: after the matching of this image by itself.
    counts: the pixels behind them where the truth has classes, None where it has only regions.
    """

    covering: float
    ari: float
    boundary_f: float
    miou: float
    accuracy: float
    segments: float
    regions: float
    counts: Counts | None


def score_image(
    prediction: Integer[np.ndarray, "H W"], truths: Sequence[Integer[np.ndarray, "..."]], num_classes: int | None = None
) -> ImageScore:
    """Compare one label map with one or several true ones.

    num_classes: of the data set; None where ids of the truth are regions of this image only.
    Raises ValueError without truth, where a truth ignores every pixel, for sizes that differ and for ids beyond 65535.
    """
    if not truths:
        raise ValueError("at least one true label map is wanted, got none")
    for truth in truths:
        if truth.shape != prediction.shape:
            raise ValueError(f"prediction and truth must have one size, got {prediction.shape} and {truth.shape}")
    outline = Outline(prediction)
    return average([_score(prediction, outline, truth, num_classes) for truth in truths])


def average(scores: Sequence[ImageScore]) -> ImageScore:
    """The mean of several scores of one image; pixel counts of classes are added."""
    means = {name: float(np.mean([getattr(score, name) for score in scores])) for name in MEASURES}
    counts = [score.counts for score in scores if score.counts is not None]
    return ImageScore(**means, counts=reduce(add, counts) if counts else None)


def _score(
    prediction: Integer[np.ndarray, "H W"],
    outline: Outline,
    truth: Integer[np.ndarray, "H W"],
    num_classes: int | None,
) -> ImageScore:
    if num_classes is not None:
        truth = np.where((truth >= 0) & (truth < num_classes), truth.astype(np.int64), IGNORE)
    table, unclaimed = overlaps(prediction, truth)
    if table.sum() + unclaimed.sum() == 0:
        raise ValueError("the truth ignores every pixel")
    if num_classes is None:
        spare = max(0, table.shape[1] - table.shape[0])  # every region needs a segment to be matched to
        counts = assign(np.pad(table.T, ((0, 0), (0, spare))), unclaimed)
    else:
        counts = assign(*confusion(prediction, truth, num_classes))
    return ImageScore(
        covering=covering(table, unclaimed),
        ari=adjusted_rand(table, unclaimed),
        boundary_f=boundary_f(outline, Outline(truth)),
        miou=counts.miou,
        accuracy=counts.accuracy,
        segments=float(table.shape[0]),
        regions=float(table.shape[1]),
        counts=None if num_classes is None else counts,
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """The scores of a data set.

    per_image: the mean over images of every measure.
    accuracy, miou, class_iou: of pixels pooled over images, as published; None where the truth has no classes.
    """

    images: int
    per_image: dict[str, Interval]
    accuracy: Interval | None = None
    miou: Interval | None = None
    class_iou: tuple[float, ...] | None = None


def summarise(scores: Sequence[ImageScore], seed: int = 0) -> Summary:
    """Average scores, with bootstrap intervals. Raises ValueError without scores."""
    if not scores:
        raise ValueError("no image was scored")
    per_image = {name: mean_interval(np.array([getattr(s, name) for s in scores]), seed) for name in MEASURES}
    summary = Summary(len(scores), per_image)
    counts = [score.counts for score in scores if score.counts is not None]
    if not counts:
        return summary
    accuracy, miou = pooled_intervals(counts, seed)
    return replace(summary, accuracy=accuracy, miou=miou, class_iou=tuple(reduce(add, counts).iou.tolist()))
