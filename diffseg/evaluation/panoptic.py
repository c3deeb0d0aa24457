"""Panoptic quality: regions of prediction and truth match where they cover each other by more than half.

As Kirillov et al. define it ("Panoptic Segmentation", CVPR 2019). Letters: C classes, K clusters, H x W pixels.
"""

from dataclasses import dataclass, fields

import numpy as np

from diffseg.evaluation.partition import overlaps
from diffseg.types import IGNORE, Float, Int, Integer


@dataclass(frozen=True, slots=True)
class RegionPairs:
    """Regions by class and cluster, whichever class a cluster is taken for later; the sum of two is of both images.

    matched: pairs with an IoU above 1/2. iou: the sum of theirs. counted: pairs whose prediction lies in void for half
    at most, as those of `predicted` do: only such a one is a false positive where its class is another.
    """

    matched: Int[np.ndarray, "C K"]
    iou: Float[np.ndarray, "C K"]
    counted: Int[np.ndarray, "C K"]
    truth: Int[np.ndarray, " C"]
    predicted: Int[np.ndarray, " K"]

    def __add__(self, other: "RegionPairs") -> "RegionPairs":
        return RegionPairs(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def quality(self, class_of: Int[np.ndarray, " _"]) -> dict[str, float]:
        """Panoptic, segmentation and recognition quality, means over classes that occur; NaN where none does.

        class_of: the class that each cluster is taken for; IGNORE, or a cluster beyond: none.
        """
        taken = class_of[: len(self.predicted)]
        cluster = np.flatnonzero(taken >= 0)
        of_class = np.zeros((len(self.truth), len(cluster)))
        of_class[taken[cluster], np.arange(len(cluster))] = 1
        tp, iou, counted = ((of_class * each[:, cluster]).sum(1) for each in (self.matched, self.iou, self.counted))
        parts = 2 * tp + (of_class @ self.predicted[cluster] - counted) + (self.truth - tp)
        there = parts > 0
        if not there.any():
            return dict.fromkeys(("pq", "sq", "rq"), float("nan"))
        sq, rq = iou / np.maximum(tp, 1), 2 * tp / np.maximum(parts, 1)
        return {name: float(each[there].mean()) for name, each in (("pq", sq * rq), ("sq", sq), ("rq", rq))}


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
    at = class_[other], cluster[region]
    matched, counted = (np.zeros((num_classes, num_clusters), np.int64) for _ in "mc")
    total = np.zeros((num_classes, num_clusters))
    np.add.at(matched, at, 1)
    np.add.at(total, at, iou[region, other])
    np.add.at(counted, at, seen[region])
    found = np.bincount(cluster[seen], minlength=num_clusters)
    return RegionPairs(matched, total, counted, np.bincount(class_, minlength=num_classes), found)


def regions_by(
    kind: Integer[np.ndarray, "H W"], part: Integer[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " R"]]:
    """Regions of pixels that share kind and part: a map of their numbers, and the kind of each; kinds below 0 none."""
    known, width = kind >= 0, int(part.max(initial=0)) + 1
    keys, number = np.unique(kind[known].astype(np.int64) * width + part[known], return_inverse=True)
    regions = np.full(kind.shape, IGNORE)
    regions[known] = number
    return regions, keys // width
