"""Bilinear interpolation as a matrix: half-pixel centres, edges clamped, no antialias."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffseg.types import Float


def bilinear(cells: int, pixels: int, device: torch.device) -> Float[Tensor, "pixels cells"]:
    """What each pixel along an axis takes from each cell.

    Two products with such matrices enlarge an image several times faster than a kernel made for few channels, and any
    of its rows can be had alone.
    """
    identity = torch.eye(cells, device=device)[None]
    return interpolate(identity, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()
