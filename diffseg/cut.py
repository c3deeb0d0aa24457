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

Measured = tuple[Int[np.ndarray, " S"], Int[np.ndarray, "S 4"]]  # areas in pixels, and boxes x, y, width, height


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
        if self.height is not None:
            return f"at {self.height:g} nats"
        return "auto" if self.auto else f"{self.segments} segments"

    def of(self, tree: Tree) -> Int[np.ndarray, " L"]:
        """The segment of each leaf; ids 0..S-1 in order of their first leaf."""
        if self.segments is not None:
            return tree.into(self.segments)
        return tree.at_height(self.height or 0.0)


def segmentation(
    leaf_map: Int32[np.ndarray, "H W"],
    tree: Tree,
    of_leaf: Int[np.ndarray, " L"],
    *,
    split: bool = False,
    measured: Measured | None = None,
) -> Segmentation:
    """The labels of an image at a cut.

    of_leaf: the segment of each leaf, as `Cut.of` gives it. split: every connected piece is a segment of its own, in
    order of its first pixel. measured: the leaves' areas and boxes, where they are known.
    Raises ValueError where the map lacks a leaf of the tree or has another.
    """
    areas, boxes = measured or _measured(leaf_map)
    if len(areas) != len(tree.leaves) or not areas.all():
        raise ValueError(f"a leaf map does not have the {len(tree.leaves)} leaves of its tree")
    label_map, nodes = renumbered(leaf_map, of_leaf), tree.features()[tree.nodes_of(of_leaf)]
    if split:
        pieces, owners = components(label_map)
        ids, first = np.unique(pieces, return_index=True)
        order = first[ids != IGNORE].argsort()
        label_map, nodes = renumbered(pieces, order.argsort()), nodes[owners[order]]
        areas, boxes = _measured(label_map)
    else:
        areas, boxes = _joined(areas, boxes, of_leaf, len(nodes))
    scores = prior(nodes, areas, boxes)
    segments = tuple(
        Segment(id_, area, (x, y, width, height), score)
        for id_, (area, (x, y, width, height), score) in enumerate(
            zip(areas.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        )
    )
    return Segmentation(label_map, segments, quality(segments))


def _measured(label_map: Int32[np.ndarray, "H W"]) -> Measured:
    boxes = [box_of(window or (slice(0, 0),) * 2) for window in ndimage.find_objects(label_map + 1)]
    return np.bincount(label_map.ravel() + 1)[1:], np.array(boxes, np.int64).reshape(-1, 4)


def _joined(
    areas: Int[np.ndarray, " L"], boxes: Int[np.ndarray, "L 4"], of_leaf: Int[np.ndarray, " L"], segments: int
) -> Measured:
    """The areas and boxes of segments from those of their leaves."""
    total, corners = np.zeros(segments, np.int64), np.full((segments, 4), np.iinfo(np.int64).max)
    np.add.at(total, of_leaf, areas)
    np.minimum.at(corners, of_leaf, np.hstack([boxes[:, :2], -boxes[:, :2] - boxes[:, 2:]]))
    return total, np.hstack([corners[:, :2], -corners[:, 2:] - corners[:, :2]])


def renumbered(label_map: Int[np.ndarray, "H W"], ids: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "H W"]:
    """A label map with another number for each id, IGNORE where it was."""
    of_pixel = np.append(ids, IGNORE).astype(np.int32)  # the last one answers for IGNORE itself
    return of_pixel.take(label_map, mode="wrap")  # in half the time of an index


def box_of(window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """x, y, width, height of rows and columns, as COCO has it."""
    rows, columns = window
    return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start


def components(label_map: Int[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " K"]]:
    """Connected components of each id (along edges): a map of their numbers, and the id of each."""
    found = np.full(label_map.shape, IGNORE, np.int32)
    owners: list[int] = []
    for label, window in enumerate(ndimage.find_objects(label_map + 1)):
        if window is None:
            continue
        parts, count = ndimage.label(label_map[window] == label)
        inside = parts > 0
        found[window][inside] = parts[inside] + len(owners) - 1
        owners += [label] * count
    return found, np.array(owners, np.int64)


def segment_vectors(
    leaf_map: Int32[np.ndarray, "H W"], vectors: Vectors | np.ndarray, label_map: Int32[np.ndarray, "H W"]
) -> Float[np.ndarray, "S D"]:
    """The mean over each segment's pixels of the vectors, or other values [L, D], of leaves; 0 of an id without any."""
    values = vectors.values * vectors.scales[:, None].astype(float) if isinstance(vectors, Vectors) else vectors
    leaves, held = len(values), (label_map != IGNORE) & (leaf_map != IGNORE)
    pairs = label_map[held].astype(np.int64) * leaves + leaf_map[held]
    areas = np.bincount(pairs, minlength=(int(label_map.max()) + 1) * leaves).reshape(-1, leaves)
    means: np.ndarray = areas @ values / np.maximum(1, areas.sum(axis=1, keepdims=True))
    return means


def quality(segments: Sequence[Segment]) -> float | None:
    """Area-weighted mean score; None for a single segment, which separates no two pixels."""
    if len(segments) < 2:
        return None
    return math.fsum(each.score * each.area for each in segments) / sum(each.area for each in segments)
