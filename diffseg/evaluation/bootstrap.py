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

    def called(self, name: str) -> dict[str, float]:
        """The figure under a name, and its ends under NAME_low and NAME_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_interval(values: Float[np.ndarray, " I"], seed: int = 0) -> Interval:
    """The mean over images; images where the figure is not defined (NaN) are left out."""
    values = values[np.isfinite(values)]
    return ratio_interval(values, np.ones(len(values)), seed)


def ratio_interval(parts: Float[np.ndarray, " I"], wholes: Float[np.ndarray, " I"], seed: int = 0) -> Interval:
    """The sum of parts over images by that of wholes; NaN where there are none."""
    return interval(lambda weights: divided(weights @ parts, weights @ wholes, np.nan), len(parts), seed)


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
        iou = divided(found, union)
        mean: np.ndarray = iou.sum(1) / occurs.sum(1)
        return mean

    return interval(accuracy, len(tp), seed), interval(miou, len(tp), seed)


def divided(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """A quotient, and something else where it is not defined."""
    found: np.ndarray = np.divide(above, below, out=np.full(below.shape, otherwise), where=below > 0)
    return found


def interval(
    statistic: Callable[[Float[np.ndarray, "R I"]], Float[np.ndarray, " R"]], images: int, seed: int = 0
) -> Interval:
    """A statistic of images, each weighted by how often it was drawn."""
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
