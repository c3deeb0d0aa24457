"""Calibration: from columns that are known of segments to the IoU they are expected to have, by a few labelled images.

Ridge regression on the standardised columns, then isotonic regression (pool adjacent violators) on what it gives, so
that the mean of predictions is that of the IoU wherever it is looked at. Letters: S segments, F columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from diffseg.types import Float, Int, Integer

RIDGE = 0.01  # of the segments: too little to matter but where columns are equal or few images are given
BINS = 10  # of equal mass, of the calibration error
FOLDS = 5
MATCHED = 0.5  # the IoU above which a segment counts as found


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted prediction. mean, scale, weights: of the columns. knots, values: of the isotonic curve."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    knots: tuple[float, ...]
    values: tuple[float, ...]

    def predict(self, columns: Float[np.ndarray, "S F"]) -> Float[np.ndarray, " S"]:
        """Expected IoU, in [0, 1]."""
        linear = (columns - np.array(self.mean)) / np.array(self.scale) @ np.array(self.weights)
        return np.asarray(np.interp(linear, self.knots, self.values))


def fit(columns: Float[np.ndarray, "S F"], ious: Float[np.ndarray, " S"]) -> Calibration:
    """Fit to segments whose IoU is known. Raises ValueError without any."""
    if len(ious) == 0:
        raise ValueError("no segment whose IoU is known")
    mean, scale = columns.mean(0), columns.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    given = (columns - mean) / scale
    penalty = RIDGE * len(ious) * np.eye(given.shape[1])
    weights = np.linalg.solve(given.T @ given + penalty, given.T @ (ious - ious.mean()))
    linear = given @ weights
    places, segment, mass = np.unique(linear, return_inverse=True, return_counts=True)
    pooled = isotonic_regression(np.bincount(segment, ious) / mass, weights=mass)
    starts = pooled.blocks[:-1]  # straight between the middles of blocks: steps would rank all of a block alike
    knots = np.add.reduceat(places * mass, starts) / np.add.reduceat(mass, starts)
    return Calibration(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(weights.tolist()),
        knots=tuple(knots.tolist()),
        values=tuple(pooled.x[starts].clip(0, 1).tolist()),
    )


def out_of_fold(
    columns: Float[np.ndarray, "S F"], ious: Float[np.ndarray, " S"], images: Int[np.ndarray, " S"], seed: int = 0
) -> Float[np.ndarray, " S"]:
    """Predictions for every segment by a fit to other images alone; images in FOLDS folds at random.

    Raises ValueError for fewer than two images.
    """
    known = np.unique(images)
    if len(known) < 2:
        raise ValueError(f"at least two images are needed to predict one from the others, got {len(known)}")
    fold = np.random.default_rng(seed).permutation(len(known)) % min(FOLDS, len(known))
    of_segment = fold[np.searchsorted(known, images)]
    found = np.empty(len(ious))
    for each in np.unique(fold):
        own = of_segment == each
        found[own] = fit(columns[~own], ious[~own]).predict(columns[own])
    return found


def auroc(scores: Float[np.ndarray, " S"], positive: np.ndarray) -> float:
    """Chance that a positive segment has a higher score than another, ties counting half; NaN without either kind."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


def calibration_error(predicted: Float[np.ndarray, " S"], ious: Float[np.ndarray, " S"]) -> float:
    """Expected calibration error: how far the mean prediction lies from the mean IoU, over BINS bins of equal mass."""
    order = np.argsort(predicted, kind="stable")
    gaps = [abs(float((predicted[bin_] - ious[bin_]).sum())) for bin_ in np.array_split(order, BINS)]
    return sum(gaps) / len(order) if len(order) else float("nan")


def best_ious(
    prediction: Integer[np.ndarray, "H W"], truths: Sequence[Integer[np.ndarray, "H W"]], segments: int
) -> Float[np.ndarray, " S"]:
    """For each segment 0..S-1 its IoU with the region it overlaps best, the mean over several truths.

    Pixels of a truth below 0 are ignored; NaN for a segment that has no others.
    """
    found = [_best_ious(prediction, truth, segments) for truth in truths]
    return np.asarray(np.mean(found, axis=0))


def _best_ious(prediction: np.ndarray, truth: np.ndarray, segments: int) -> Float[np.ndarray, " S"]:
    labelled = truth >= 0
    regions, region = np.unique(truth[labelled], return_inverse=True)
    cells = (prediction[labelled].astype(np.int64) + 1) * len(regions) + region  # row 0: what is in no segment
    table = np.bincount(cells, minlength=(segments + 1) * len(regions)).reshape(segments + 1, len(regions))
    own = table[1:]
    union = own.sum(1, keepdims=True) + table.sum(0) - own
    best: np.ndarray = np.where(own.any(1), (own / union).max(1, initial=0.0), np.nan)
    return best
