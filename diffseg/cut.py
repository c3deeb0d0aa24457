"""Cuts: the label map and the segments of any granularity, made anew from the leaves of a tree in milliseconds.

No torch here: readers of finished labels cut trees too. Letters: L leaves, S segments of a cut.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffseg.prior import prior
from diffseg.tree import Tree
from diffseg.types import IGNORE, Float, Int, Int32, Segment, Segmentation, Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One of the partitions in a tree: at a height in nats or in a number of segments.

    auto: at the height of the run that is read, by default its model's own. On the training photos no rule that chooses
    a height for each image was better: neither the least energy at one price a segment (Guigues et al., 2006), nor a
    share of the root's height.

    Raises ValueError for several or none of them, a height below 0 and a number below 1.
    """

    height: float | None = None
    segments: int | None = None
    auto: bool = False

    def __post_init__(self) -> None:
        if (self.height is not None) + (self.segments is not None) + self.auto != 1:
            raise ValueError("a cut has either a height or a number of segments")
        if self.height is not None and not (math.isfinite(self.height) and self.height >= 0):
            raise ValueError(f"a cut is made at a height in nats, at least 0, got {self.height}")
        if self.segments is not None and self.segments < 1:
            raise ValueError(f"a cut has at least one segment, got {self.segments}")

    def __str__(self) -> str:
        return f"at {self.height:g} nats" if self.segments is None else f"{self.segments} segments"

    def of(self, tree: Tree) -> Int[np.ndarray, " L"]:
        """The segment of each leaf; ids 0..S-1 in order of their first leaf."""
        if self.segments is not None:
            return tree.into(self.segments)
        return tree.at_height(self.height or 0.0)


def segmentation(leaf_map: Int32[np.ndarray, "H W"], tree: Tree, of_leaf: Int[np.ndarray, " L"]) -> Segmentation:
    """The labels of an image at a cut.

    of_leaf: the segment of each leaf, as `Cut.of` gives it. Raises ValueError where the map lacks a leaf of the tree or
    has another.
    """
    leaves = ndimage.find_objects(leaf_map + 1)
    if len(leaves) != len(tree.leaves) or None in leaves:
        raise ValueError(f"a leaf map does not have the {len(tree.leaves)} leaves of its tree")
    sides = np.array([[x.start, y.start, x.stop, y.stop] for y, x in leaves]).reshape(-1, 4)
    count = int(of_leaf.max()) + 1
    begin, end = np.full((count, 2), max(leaf_map.shape)), np.zeros((count, 2), int)
    np.minimum.at(begin, of_leaf, sides[:, :2])
    np.maximum.at(end, of_leaf, sides[:, 2:])
    of_pixel = np.append(of_leaf, IGNORE).astype(np.int32)  # the last one answers for IGNORE itself
    label_map = of_pixel.take(leaf_map, mode="wrap")  # in half the time of an index
    areas = np.bincount(label_map.ravel() + 1, minlength=count + 1)[1:]
    boxes = np.hstack([begin, end - begin])
    scores = prior(tree.features()[tree.nodes_of(of_leaf)], areas, boxes)
    segments = tuple(
        Segment(id_, area, tuple(box), score)
        for id_, (area, box, score) in enumerate(zip(areas.tolist(), boxes.tolist(), scores.tolist(), strict=True))
    )
    return Segmentation(label_map, segments, quality(segments))


def segment_vectors(
    leaf_map: Int32[np.ndarray, "H W"], vectors: Vectors, of_leaf: Int[np.ndarray, " L"]
) -> Float[np.ndarray, "S D"]:
    """The vectors of a cut's segments: the mean of their leaves' vectors, weighted by area."""
    areas = np.bincount(leaf_map.ravel() + 1, minlength=len(of_leaf) + 1)[1:]
    weights = (of_leaf == np.arange(of_leaf.max() + 1)[:, None]) * areas
    total = weights @ (vectors.values * vectors.scales[:, None].astype(float))
    means: np.ndarray = total / weights.sum(axis=1, keepdims=True)
    return means


def quality(segments: Sequence[Segment]) -> float | None:
    """Area-weighted mean score; None for a single segment, which separates no two pixels."""
    if len(segments) < 2:
        return None
    return math.fsum(each.score * each.area for each in segments) / sum(each.area for each in segments)
