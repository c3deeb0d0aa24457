"""What the method returns, and the shape annotations it is written with.

No torch here: readers of finished labels share these records.
"""

from dataclasses import dataclass

import numpy as np

from diffseg.annotations import Bool, Float, Int, Int32, Integer, UInt8
from diffseg.tree import Tree

__all__ = [
    "IGNORE",
    "AttentionError",
    "Bool",
    "Float",
    "Int",
    "Int32",
    "Integer",
    "Segment",
    "Segmentation",
    "UInt8",
    "Vectors",
]

WORD = np.dtype([("line", "<u2"), ("score", "<f4")])  # of the words of a configuration the line, from 0
IGNORE = -1  # the id of void pixels, which belong to no segment: outside the crop in `paper` mode


class AttentionError(ValueError):
    """The model's attention is no distribution (NaN, infinite, rows not summing to one) for some images.

    images: their indices in the batch; the others can be segmented again without them.
    """

    def __init__(self, message: str, images: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.images = images


@dataclass(frozen=True, slots=True)
class Segment:
    """One region of a label map."""

    id: int
    area: int  # pixels
    box: tuple[int, int, int, int]  # x, y, width, height, as COCO has it
    score: float  # in [0, 1]
    category: str | None = None  # None where semantics are off


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """A vector for each leaf of a tree, by which leaves of all images compare: `values` times `scales`."""

    values: Int[np.ndarray, "L 64"]  # int8
    scales: Float[np.ndarray, " L"]  # float16


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The labels of one image.

    label_map: ids 0..n-1 without gaps, IGNORE for void pixels, in the frame of the source image.
    segments: one per id, in order of id.
    quality: area-weighted mean score, in [0, 1]; None where there is only one segment.
    leaf_map: the leaf of each pixel, as label_map; tree: of these leaves, `label_map` is one of its cuts; vectors: of
    the leaves; ridges: uint8, of the borders in leaf_map (see `ridges`); words: WORD [n, 3], the best of each leaf or,
    where there is no tree, of each segment. None where they are off.
    """

    label_map: Int32[np.ndarray, "H W"]
    segments: tuple[Segment, ...]
    quality: float | None
    leaf_map: Int32[np.ndarray, "H W"] | None = None
    tree: Tree | None = None
    vectors: Vectors | None = None
    ridges: UInt8[np.ndarray, " E"] | None = None
    words: np.ndarray | None = None
