"""How far a figure measured on these images may lie from the figure on other images of their kind.

Letters: I images, C classes. Percentile bootstrap (Efron, 1979): images are drawn again with replacement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.matching import Counts
from diffseg.types import Float, Int

RESAMPLES = 1000  # the ends of a 95 % interval are then themselves good to about a tenth of its width
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and where it lies in 95 % of the draws. NaN throughout if nothing was measured."""

    value: float
    low: float
    high: float


def mean_interval(values: Float[np.ndarray, " I"], seed: int = 0) -> Interval:
    """The mean over images; those where the figure is not defined (NaN) have no say."""
    values = values[np.isfinite(values)]
    return _interval(lambda weights: float(weights @ values / weights.sum()), len(values), seed)


def pooled_intervals(counts: Sequence[Counts], seed: int = 0) -> tuple[Interval, Interval]:
    """(accuracy, mIoU) of pixels pooled over all images, as the published protocols have them."""
    tp, fp, fn = (np.stack([getattr(one, part) for one in counts]) for part in ("tp", "fp", "fn"))

    def pooled(weights: Int[np.ndarray, " I"]) -> Counts:
        return Counts(weights @ tp, weights @ fp, weights @ fn)

    accuracy = _interval(lambda weights: pooled(weights).accuracy, len(tp), seed)
    return accuracy, _interval(lambda weights: pooled(weights).miou, len(tp), seed)


def _interval(statistic: Callable[[Int[np.ndarray, " I"]], float], images: int, seed: int) -> Interval:
    if images == 0:
        return Interval(*[float("nan")] * 3)
    drawn = [statistic(weights) for weights in _resample(images, seed)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(statistic(np.ones(images, np.int64)), float(low), float(high))


def _resample(images: int, seed: int) -> Iterator[Int[np.ndarray, " I"]]:
    """How often each image was drawn; equal seeds draw alike, so that methods meet the same images."""
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield np.bincount(random.integers(images, size=images), minlength=images)
