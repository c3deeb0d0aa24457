"""Panoptic quality: regions of prediction and truth match where they cover each other by more than half.

As Kirillov et al. define it ("Panoptic Segmentation", CVPR 2019). Letters: C classes, K clusters, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from diffseg.evaluation.bootstrap import Interval, divided, interval
from diffseg.evaluation.partition import overlaps
from diffseg.types import IGNORE, Bool, Float, Int, Integer


@dataclass(frozen=True, slots=True)
class RegionPairs:
    """Regions of one image by class and cluster, whichever class a cluster is taken for later.

    class_, cluster, iou: of pairs with an IoU above 1/2. counted: those whose prediction lies in void for half at most,
    as those of `predicted` do: only such a one is a false positive where its class is another.
    """

    class_: Int[np.ndarray, " P"]
    cluster: Int[np.ndarray, " P"]
    iou: Float[np.ndarray, " P"]
    counted: Bool[np.ndarray, " P"]
    truth: Int[np.ndarray, " C"]
    predicted: Int[np.ndarray, " K"]


def panoptic_quality(images: Sequence[RegionPairs], class_of: Int[np.ndarray, " _"]) -> dict[str, Interval]:
    """Panoptic, segmentation and recognition quality, means over classes that occur; NaN where none does.

    class_of: the class that each cluster is taken for; IGNORE, or a cluster beyond: none.
    """
    tp, iou, wrong = (np.zeros((len(images), len(images[0].truth))) for _ in range(3))
    for at, each in enumerate(images):
        taken = np.full(len(each.predicted), IGNORE)
        taken[: len(class_of)] = class_of[: len(taken)]
        hit = taken[each.cluster] == each.class_
        np.add.at(tp[at], each.class_[hit], 1)
        np.add.at(iou[at], each.class_[hit], each.iou[hit])
        np.add.at(wrong[at], taken[taken >= 0], each.predicted[taken >= 0])
        np.add.at(wrong[at], each.class_[hit & each.counted], -1)
        wrong[at] += each.truth - tp[at]

    def mean(name: str, weights: Float[np.ndarray, "R I"]) -> Float[np.ndarray, " R"]:
        found, parts = weights @ tp, weights @ (2 * tp + wrong)
        sq, rq = divided(weights @ iou, found), divided(2 * found, parts)
        values = {"pq": sq * rq, "sq": sq, "rq": rq}[name]
        return divided(values.sum(1), (parts > 0).sum(1), np.nan)

    return {name: interval(partial(mean, name), len(images)) for name in ("pq", "sq", "rq")}


def region_pairs(
    predicted: tuple[Integer[np.ndarray, "H W"], Integer[np.ndarray, "H W"]],
    truth: tuple[Integer[np.ndarray, "H W"], Integer[np.ndarray, "H W"]],
    num_clusters: int,
    num_classes: int,
) -> RegionPairs:
    """The pairs of one image. predicted, truth: for each pixel its cluster or class, below 0 none, and its part."""
    (ours, cluster), (theirs, class_) = regions_by(*predicted), regions_by(*truth)
    table, unclaimed = overlaps(ours, theirs)
    claimed = np.flatnonzero(np.bincount(ours[theirs >= 0] + 1, minlength=len(cluster) + 1)[1:])
    cluster, area = cluster[claimed], np.bincount(ours.ravel() + 1)[1:][claimed]
    inside = table.sum(1)  # of each prediction what is not void
    iou = table / (inside[:, None] + table.sum(0) + unclaimed - table)
    seen = 2 * inside >= area
    region, other = np.nonzero(iou > 0.5)
    found = np.bincount(cluster[seen], minlength=num_clusters)
    there = np.bincount(class_, minlength=num_classes)
    return RegionPairs(class_[other], cluster[region], iou[region, other], seen[region], there, found)


def regions_by(
    kind: Integer[np.ndarray, "H W"], part: Integer[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " R"]]:
    """Regions of pixels that share kind and part: a map of their numbers, and the kind of each; kinds below 0 none."""
    known, width = kind >= 0, int(part.max(initial=0)) + 1
    keys, number = np.unique(kind[known].astype(np.int64) * width + part[known], return_inverse=True)
    regions = np.full(kind.shape, IGNORE)
    regions[known] = number
    return regions, keys // width
