"""Bilinear interpolation as a matrix: half-pixel centres, edges clamped, no antialias."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffseg.transfer import kept
from diffseg.types import Float


@kept
def bilinear(cells: int, pixels: int, device: torch.device) -> Float[Tensor, "pixels cells"]:
    """Weights of the cells in each pixel along one axis.

    Two products with such matrices enlarge an image several times faster than a kernel made for few channels, and can
    compute any of its rows alone.
    """
    identity = torch.eye(cells, device=device)[None]
    return interpolate(identity, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()
