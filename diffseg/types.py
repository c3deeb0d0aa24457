"""What the method returns, and the shape annotations it is written with.

Letters: B images of a batch, H x W pixels, h x w cells of the finest attention grid, N = h * w, n cells of any level,
A anchors, P proposals. No torch here: readers of finished labels share these records.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int32, Integer, UInt8
else:
    try:  # jaxtyping checks shapes under test; a production install does without it
        from jaxtyping import Bool, Float, Int, Int32, Integer, UInt8
    except ImportError:

        class _Annotation:
            """`Float[Tensor, "B N"]` reads as plain `Tensor` where jaxtyping is absent."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Int32 = Integer = UInt8 = _Annotation

__all__ = ["AttentionError", "Bool", "Float", "IGNORE", "Int", "Int32", "Integer", "Segment", "Segmentation", "UInt8"]

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


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The labels of one image.

    label_map: ids 0..n-1 without gaps, IGNORE for void pixels, in the frame of the source image.
    segments: one per id, in order of id.
    quality: area-weighted mean score, in [0, 1]; None where there is only one segment.
    """

    label_map: Int32[np.ndarray, "H W"]
    segments: tuple[Segment, ...]
    quality: float | None
