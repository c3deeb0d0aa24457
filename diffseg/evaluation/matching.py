"""Matching of segments to classes, as published: one image at a time, or once for a data set.

Letters: C classes of the truth, S segments of the prediction, H x W pixels.
A truth outside 0..C-1 is ignored; a prediction below 0 (`IGNORE`) is in no segment and counts as a false negative.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from diffseg.evaluation.partition import overlaps
from diffseg.types import IGNORE, Float, Int, Integer

MAX_ID = 65_535  # what a 16-bit label map can hold; a larger id is a mistake, and would cost C columns of memory each


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels of each class after matching; the sum of two counts the images of both."""

    tp: Int[np.ndarray, " C"]
    fp: Int[np.ndarray, " C"]
    fn: Int[np.ndarray, " C"]

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def valid(self) -> int:
        """Pixels whose truth is a class: each is a true positive or a false negative."""
        return int(self.tp.sum() + self.fn.sum())

    @property
    def iou(self) -> Float[np.ndarray, " C"]:
        """Intersection over union of each class; NaN where a class neither occurs nor is predicted."""
        union = (self.tp + self.fp + self.fn).astype(float)
        iou: np.ndarray = np.divide(self.tp, union, out=np.full(union.shape, np.nan), where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean over the classes that occur; NaN if none does."""
        iou = self.iou
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of the labelled pixels whose segment stands for their class; NaN without labelled pixels."""
        return float(self.tp.sum() / self.valid) if self.valid else float("nan")


def confusion(
    prediction: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "..."], num_classes: int
) -> tuple[Int[np.ndarray, "C S"], Int[np.ndarray, " C"]]:
    """Pixels of each (class, segment), and of each class the pixels no segment claims.

    S is at least C: an absent segment is something a class can be matched to as well.
    Raises ValueError for shapes that differ, ids above MAX_ID, or num_classes below one.
    """
    _check(prediction, truth, num_classes)
    highest = int(prediction.max(initial=0))
    if highest > MAX_ID:
        raise ValueError(f"segment ids end at {MAX_ID}, got {highest}")
    segments = max(num_classes, highest + 1)
    labelled = (truth >= 0) & (truth < num_classes)
    segment = prediction[labelled].astype(np.int64)
    segment[segment < 0] = segments  # one column more, for what no segment claims
    cells = truth[labelled].astype(np.int64) * (segments + 1) + segment
    table = np.bincount(cells, minlength=num_classes * (segments + 1)).reshape(num_classes, segments + 1)
    return table[:, :segments], table[:, segments]


def assign(table: Int[np.ndarray, "C S"], unclaimed: Int[np.ndarray, " C"]) -> Counts:
    """Assign one segment to every class so that the number of pixels they share is maximal.

    A segment assigned to an absent class counts as its false positives; segments beyond C are not counted.
    Raises ValueError with fewer segments than classes (`confusion` never gives that).
    """
    if table.shape[1] < table.shape[0]:
        raise ValueError(f"a table of at least as many segments as classes is wanted, got {table.shape}")
    return counts_of(table, unclaimed, matched(table))


def matched(table: Int[np.ndarray, "C S"]) -> Int[np.ndarray, " S"]:
    """The class of each segment where every class has one, so that they share most pixels; IGNORE: none."""
    class_of = np.full(table.shape[1], IGNORE)
    class_of[linear_sum_assignment(table, maximize=True)[1]] = np.arange(len(table))  # rows come back in order
    return class_of


def agreement(one: Integer[np.ndarray, "H W"], other: Integer[np.ndarray, "H W"]) -> float:
    """Share of pixels with equal labels, once the segments of two label maps are paired so that most have.

    The ignore id is a segment too.
    """
    table, _ = overlaps(one + 1, other + 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / one.size)


def counts_of(
    table: Int[np.ndarray, "C S"], unclaimed: Int[np.ndarray, " C"], class_of: Int[np.ndarray, " S"]
) -> Counts:
    """Counts where each segment stands for a class, however many do for one; IGNORE: for none."""
    chosen = class_of == np.arange(len(table))[:, None]
    tp: np.ndarray = (table * chosen).sum(1)
    return Counts(tp, chosen @ table.sum(0) - tp, table.sum(1) + unclaimed - tp)


def hungarian_match(
    prediction: Integer[np.ndarray, "*B H W"], truth: Integer[np.ndarray, "..."], num_classes: int
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"], Int[np.ndarray, " C"], int]:
    """Match each image by itself and add up: (tp, fp, fn, valid), as DiffSeg is measured (arXiv 2308.12469).

    prediction, truth: one image or a stack of them.
    mIoU is nanmean(tp / (tp + fp + fn)), accuracy tp.sum() / valid.
    Raises ValueError as `confusion` does.
    """
    _check(prediction, truth, num_classes)
    size = prediction.shape[-2:]
    zero = np.zeros(num_classes, np.int64)
    total = Counts(zero, zero, zero)
    for predicted, true in zip(prediction.reshape(-1, *size), truth.reshape(-1, *size), strict=True):
        total += assign(*confusion(predicted, true, num_classes))
    return total.tp, total.fp, total.fn, total.valid


def _check(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one size, got {prediction.shape} and {truth.shape}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


class DatasetMatching:
    """One matching for the whole data set, as PiCIE (arXiv 2103.17070) and STEGO (arXiv 2203.08414) are measured.

    Meaningful only where an id has one meaning in all images: for clusters or categories, not for plain segments.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._table = np.zeros((num_classes, num_classes), np.int64)
        self._unclaimed = np.zeros(num_classes, np.int64)

    def add(self, table: Int[np.ndarray, "C S"], unclaimed: Int[np.ndarray, " C"]) -> None:
        """Count one image by its `confusion`."""
        more = table.shape[1] - self._table.shape[1]
        if more > 0:
            self._table = np.pad(self._table, ((0, 0), (0, more)))
        self._table[:, : table.shape[1]] += table
        self._unclaimed += unclaimed

    def counts(self, class_of: Int[np.ndarray, " S"] | None = None) -> Counts:
        """The pixels added so far. class_of: the class of each segment; None: they are matched."""
        if class_of is None:
            return assign(self._table, self._unclaimed)
        padded = np.full(self._table.shape[1], IGNORE)
        padded[: len(class_of)] = class_of[: len(padded)]
        return counts_of(self._table, self._unclaimed, padded)

    def classes(self) -> dict[str, Int[np.ndarray, " S"]]:
        """The class of each segment: `once` as matched; by `majority` of pixels, as over-clustering is measured."""
        majority = np.where(self._table.any(0), self._table.argmax(0), IGNORE)
        return {"once": matched(self._table), "majority": majority}
