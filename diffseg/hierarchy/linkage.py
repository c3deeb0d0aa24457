"""Average linkage of attention maps: cells become at most so many leaves, and the leaves one tree.

Letters: B images, N cells of the grid, M pooled cells, C clusters that are left, L leaves.

Every cluster is known by its first cell. It ends where it is merged into another one that has an earlier first cell, so
that a cell says all about one merge: into which cell, and at which height. The cell 0 is never merged into another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg.types import Float, Int

LOOK = {"cpu": 1, "cuda": 6}  # rounds until the host asks how many clusters are left
FAR = 1e30  # nats, between what must not merge: finite, for a share of nothing of it must be nothing


@dataclass(frozen=True)
class Linkage:
    """The merges of a batch. into, height: of the merge that ends each cluster; of cell 0 itself and infinity."""

    into: Int[Tensor, "B M"]
    height: Float[Tensor, "B M"]


@torch.no_grad()
def average_linkage(distance: Float[Tensor, "B M M"]) -> Linkage:
    """Merge again and again the two clusters whose cells are nearest on average.

    All pairs that are each other's nearest are merged at once: a merge brings no other pair nearer, so that this gives
    the same tree (reducibility, Murtagh 1983) in some dozens of rounds. Heights rise strictly from a merge to those
    above it.
    """
    images, cells, _ = distance.shape
    image, infinite = torch.arange(images, device=distance.device)[:, None], distance.new_full((), torch.inf)
    cell = torch.arange(cells, device=distance.device).expand(images, -1)
    size, top = torch.ones_like(cell), distance.new_zeros(images, cells)
    into = torch.arange(cells + 1, device=distance.device).repeat(images, 1)  # the last takes what is no cluster
    height = distance.new_full((images, cells + 1), torch.inf)
    distance = _between((distance + distance.mT).div_(2).clamp_(min=0), cell < cells)
    turn = 0
    while distance.shape[-1] > 1:
        turn += 1
        nearest, partner = distance.min(-1)
        index = torch.arange(distance.shape[-1], device=distance.device)
        mutual = (partner.gather(1, partner) == index) & (nearest < FAR)
        ends = mutual & (partner < index)
        least = torch.maximum(top, top.gather(1, partner))
        at = torch.maximum(nearest, torch.nextafter(least, infinite))
        into.scatter_(1, cell, cell.gather(1, partner).where(ends, cell))
        height.scatter_(1, cell, at.where(ends, infinite))
        top = at.where(mutual, top)
        left = ~ends & (cell < cells)
        most = distance.shape[-1] if turn % LOOK[distance.device.type] else int(left.sum(-1).max())
        kept = left.sort(dim=-1, descending=True, stable=True).indices[:, :most]
        other = partner.where(mutual, index).gather(1, kept)
        sizes = size.gather(1, kept), size.gather(1, other).where(mutual.gather(1, kept), 0)
        share = (sizes[1] / (sizes[0] + sizes[1])).to(distance.dtype)
        rows = torch.lerp(distance[image, kept], distance[image, other], share[..., None]).mT
        merged = torch.lerp(rows[image, kept], rows[image, other], share[..., None])
        cell = cell.gather(1, kept).where(left.gather(1, kept), cells)
        size, top = sizes[0] + sizes[1], top.gather(1, kept)
        distance = _between((merged + merged.mT).div_(2), cell < cells)
    return Linkage(into[:, :-1], height[:, :-1])


def _between(distance: Float[Tensor, "B C C"], real: Tensor) -> Float[Tensor, "B C C"]:
    distance.diagonal(dim1=-2, dim2=-1).fill_(FAR)
    return distance.masked_fill_(~(real[:, :, None] & real[:, None, :]), FAR)
