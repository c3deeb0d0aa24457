"""Assignment: proposals are enlarged, and every pixel gets the id of the proposal that attends to it most.

Letters: P proposals, h x w cells of the attention grid, H x W pixels of the result.
"""

import torch
from torch import Tensor

from diffseg.method.bilinear import bilinear
from diffseg.types import IGNORE, Float, Int

TILE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}  # of enlarged proposals held at a time


def assign(proposals: Float[Tensor, "P h w"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """The strongest proposal of every pixel after bilinear enlargement; all zero where there is no proposal.

    Ids are indices of `proposals`: proposals without a pixel leave gaps.
    """
    height, width = size
    labels = torch.zeros(size, dtype=torch.int32, device=proposals.device)
    count, h, w = proposals.shape
    if count < 2:
        return labels
    down, across = bilinear(h, height, proposals.device), bilinear(w, width, proposals.device)
    wide = proposals @ across.T
    rows = max(1, TILE_BYTES[proposals.device.type] // (4 * count * width))
    for top in range(0, height, rows):
        enlarged = down[top : top + rows] @ wide
        labels[top : top + rows] = enlarged.max(dim=0).indices  # several times faster than argmax
    return labels


def enlarge(cells: Int[Tensor, "h w"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """The label that most of each pixel comes from where a label map is enlarged bilinearly; of equals the upper left.

    It is that of `assign` for maps which are one in a label's cells and else zero, at a cost without the labels.
    """
    (rows, down), (columns, across) = (_around(*axis, cells.device) for axis in zip(cells.shape, size, strict=True))
    labels = cells.int()[rows[:, None, :, None], columns[None, :, None, :]].flatten(0, 1)
    weights = (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)
    votes = torch.zeros_like(weights)
    for label, weight in zip(labels, weights, strict=True):
        votes += weight * (labels == label)
    return labels.gather(0, votes.max(dim=0, keepdim=True).indices)[0]


def _around(cells: int, pixels: int, device: torch.device) -> tuple[Int[Tensor, "2 H"], Float[Tensor, "2 H"]]:
    """The two cells about each pixel's centre along one axis, and the share of each."""
    centre = (torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5
    centre = centre.clamp(0, cells - 1)
    first = centre.long()
    share = centre - first
    return torch.stack([first, (first + 1).clamp(max=cells - 1)]), torch.stack([1 - share, share])


def paste(labels: Int[Tensor, "a b"], window: tuple[int, int, int, int], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """Put a label map into a part (top, left, height, width) of a larger one, the rest of which is void.

    Nearest pixel by its centre.
    """
    top, left, height, width = window
    rows = _nearest(labels.shape[0], height, labels.device)
    columns = _nearest(labels.shape[1], width, labels.device)
    whole = torch.full(size, IGNORE, dtype=labels.dtype, device=labels.device)
    whole[top : top + height, left : left + width] = labels[rows[:, None], columns]
    return whole


def _nearest(cells: int, pixels: int, device: torch.device) -> Int[Tensor, " H"]:
    return (2 * torch.arange(pixels, device=device) + 1) * cells // (2 * pixels)
