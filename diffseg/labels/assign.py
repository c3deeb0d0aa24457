"""Assignment: proposals are enlarged, and every pixel gets the id of the proposal that attends to it most.

Letters: P proposals, h x w cells of the attention grid, H x W pixels of the result.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffseg.method.bilinear import bilinear
from diffseg.transfer import kept
from diffseg.types import IGNORE, Float, Int

TILE_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}  # of enlarged proposals held at a time
TOGETHER = {"cpu": 1, "cuda": 1 << 24}  # pixels of label maps painted at a time, or one image


def assign(proposals: Float[Tensor, "*B P h w"], size: tuple[int, int]) -> Int[Tensor, "*B H W"]:
    """The strongest proposal of every pixel after bilinear enlargement; all zero where there is no proposal.

    Ids are indices of `proposals`: proposals without a pixel leave gaps.
    """
    height, width = size
    *images, count, h, w = proposals.shape
    labels = torch.zeros((*images, *size), dtype=torch.int32, device=proposals.device)
    if count < 2:
        return labels
    down, across = bilinear(h, height, proposals.device), bilinear(w, width, proposals.device)
    wide = proposals @ across.T
    rows = max(1, TILE_BYTES[proposals.device.type] // (4 * math.prod(images) * count * width))
    for top in range(0, height, rows):
        enlarged = down[top : top + rows] @ wide
        labels[..., top : top + rows, :] = enlarged.max(dim=-3).indices  # several times faster than argmax
    return labels


def enlarge(cells: Int[Tensor, "*B h w"], size: tuple[int, int]) -> Int[Tensor, "*B H W"]:
    """The label that most of each pixel comes from where a label map is enlarged bilinearly; of equals the upper left.

    It is that of `assign` for maps which are one in a label's cells and else zero, at a cost without the labels.
    """
    (rows, down), (columns, across) = (
        _around(*axis, cells.device) for axis in zip(cells.shape[-2:], size, strict=True)
    )
    labels = cells.int()[..., rows[:, None, :, None], columns[None, :, None, :]].flatten(-4, -3)
    weights = (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)
    votes = torch.zeros(labels.shape, device=labels.device)
    for corner, weight in enumerate(weights):
        votes += weight * (labels == labels[..., corner, None, :, :])
    return labels.gather(-3, votes.max(dim=-3, keepdim=True).indices)[..., 0, :, :]


@kept
def _around(cells: int, pixels: int, device: torch.device) -> tuple[Int[Tensor, "2 H"], Float[Tensor, "2 H"]]:
    """The two cells about each pixel's centre along one axis, and the share of each."""
    centre = (torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5
    centre = centre.clamp(0, cells - 1)
    first = centre.long()
    share = centre - first
    return torch.stack([first, (first + 1).clamp(max=cells - 1)]), torch.stack([1 - share, share])


def by_size(sizes: Sequence[tuple[int, int]], device: torch.device) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Runs of images of one size, to be painted together: of no more pixels than a device has room for, or one."""
    most, first = TOGETHER[device.type], 0
    for last, size in enumerate(sizes, start=1):
        if last == len(sizes) or sizes[last] != size or (last + 1 - first) * size[0] * size[1] > most:
            yield slice(first, last), size
            first = last


def paste(
    labels: Int[Tensor, "*B a b"], window: tuple[int, int, int, int], size: tuple[int, int]
) -> Int[Tensor, "*B H W"]:
    """Put a label map into a part (top, left, height, width) of a larger one, the rest of which is void.

    Nearest pixel by its centre.
    """
    top, left, height, width = window
    *images, a, b = labels.shape
    rows, columns = _nearest(a, height, labels.device), _nearest(b, width, labels.device)
    whole = torch.full((*images, *size), IGNORE, dtype=labels.dtype, device=labels.device)
    whole[..., top : top + height, left : left + width] = labels[..., rows[:, None], columns]
    return whole


def _nearest(cells: int, pixels: int, device: torch.device) -> Int[Tensor, " H"]:
    return (2 * torch.arange(pixels, device=device) + 1) * cells // (2 * pixels)
