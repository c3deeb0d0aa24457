"""Bootstrap confidence intervals: how far a figure on these images may lie from that on other images of their kind.

Letters: I images, C classes, R draws. Percentile bootstrap (Efron, 1979): images are drawn again with replacement.
Not scipy.stats.bootstrap: it draws the same images, but gathers what one product of weights sums up (three times as
long for 27 classes), and it refuses a single image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.evaluation.matching import Counts
from diffseg.types import Float

DRAWS = 1000  # the ends of a 95 % interval are then themselves good to about a tenth of its width
LEVEL = 0.95
CHUNK = 1 << 22  # weights held at a time: 32 MB however many images there are


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % confidence interval. NaN throughout if nothing was measured."""

    value: float
    low: float
    high: float


def mean_interval(values: Float[np.ndarray, " I"], seed: int = 0) -> Interval:
    """The mean over images; images where the figure is not defined (NaN) are left out."""
    values = values[np.isfinite(values)]
    return _interval(lambda weights: weights @ values / weights.sum(1), len(values), seed)


def pooled_intervals(counts: Sequence[Counts], seed: int = 0) -> tuple[Interval, Interval]:
    """(accuracy, mIoU) of pixels pooled over all images, as in the published protocols."""
    tp, fp, fn = (np.stack([getattr(each, part) for each in counts]).astype(float) for part in ("tp", "fp", "fn"))

    def accuracy(weights: Float[np.ndarray, "R I"]) -> Float[np.ndarray, " R"]:
        found = (weights @ tp).sum(1)
        rate: np.ndarray = found / (found + (weights @ fn).sum(1))
        return rate

    def miou(weights: Float[np.ndarray, "R I"]) -> Float[np.ndarray, " R"]:
        found, union = weights @ tp, weights @ (tp + fp + fn)
        occurs = union > 0
        iou = np.divide(found, union, out=np.zeros_like(found), where=occurs)
        mean: np.ndarray = iou.sum(1) / occurs.sum(1)
        return mean

    return _interval(accuracy, len(tp), seed), _interval(miou, len(tp), seed)


def _interval(
    statistic: Callable[[Float[np.ndarray, "R I"]], Float[np.ndarray, " R"]], images: int, seed: int
) -> Interval:
    if images == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    drawn = np.concatenate([statistic(weights) for weights in _draws(images, seed)])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(np.ones((1, images)))[0]), float(low), float(high))


def _draws(images: int, seed: int) -> Iterator[Float[np.ndarray, "R I"]]:
    """How often each image was drawn; equal seeds draw equal images, so that methods can be compared."""
    random = np.random.default_rng(seed)
    at_once = max(1, CHUNK // images)
    for first in range(0, DRAWS, at_once):
        rows = range(min(at_once, DRAWS - first))
        yield np.stack([np.bincount(random.integers(images, size=images), minlength=images) for _ in rows]).astype(
            float
        )
