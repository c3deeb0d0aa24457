"""Leaves: the cells of a batch's grid are clustered by their attention, and every cell is given to a leaf.

Letters: B images, N cells of the grid h x w, M pooled cells, L leaves, n = 2 L - 1 nodes: leaves, then merges.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg.hierarchy.features import node_features
from diffseg.hierarchy.linkage import Linkage, average_linkage
from diffseg.method.aggregate import Attention
from diffseg.method.merge import Logged, symmetric_kl
from diffseg.types import Bool, Float, Int

POOL = 2  # cells a side whose maps are averaged before linkage: a quarter of the maps for the same leaves


@dataclass(frozen=True)
class Leaves:
    """The leaves of a batch and the tree they make.

    cells: the leaf of each cell. merges: as of a `Linkage` whose clusters are leaves. features: LEAF of each node,
    those of merges in order of height.
    """

    cells: Int[Tensor, "B N"]
    merges: Linkage
    features: Int[Tensor, "B n 4"]


def grow(attention: Attention, most: int) -> Leaves:
    """Cluster the maps of pooled cells; the clusters before the last `most` - 1 merges are the leaves.

    Then every cell is given to the leaf whose mean map is nearest to its own.
    """
    maps, places = pooled(attention)
    logged = Logged(maps)
    linkage = average_linkage(symmetric_kl(logged, logged))
    leaf, merges = last_merges(linkage, most)
    member = torch.nn.functional.one_hot(leaf, merges.into.shape[1]).mT.to(maps.dtype)
    size = member.sum(-1)
    means = (member @ maps) / size[..., None]
    near = Logged(means)
    cells = torch.cat([symmetric_kl(near, Logged(tile)).argmin(1) for tile in attention.tiles()], dim=-1)
    keys = means.gather(2, places.expand(*means.shape[:2], -1))
    return Leaves(cells, merges, node_features(keys, size, leaf, members(merges), _halved(attention.grid)))


def last_merges(linkage: Linkage, most: int) -> tuple[Int[Tensor, "B M"], Linkage]:
    """The leaf of each pooled cell, and the merges between leaves; leaves are numbered by their first cells."""
    count = linkage.into.shape[1]
    leaves = min(most, count)
    rank = linkage.height.argsort(dim=-1, stable=True).argsort(dim=-1)
    is_leaf = rank >= count - leaves
    number = is_leaf.cumsum(-1) - 1
    index = torch.arange(count, device=rank.device)
    leaf = number.gather(1, _roots(linkage.into.where(~is_leaf, index)))
    first = is_leaf.sort(dim=-1, descending=True, stable=True).indices[:, :leaves]
    into = number.gather(1, linkage.into.gather(1, first))
    return leaf, Linkage(into, linkage.height.gather(1, first))


def members(merges: Linkage) -> Bool[Tensor, "B n L"]:
    """The leaves of each node."""
    images, leaves = merges.into.shape
    order = merges.height.argsort(dim=-1, stable=True)
    rank = order.argsort(dim=-1)
    index = torch.arange(leaves, device=rank.device)
    made = rank[:, None, :] <= index[: leaves - 1, None]
    roots = _roots(merges.into[:, None, :].where(made, index))
    of_merge = merges.into.gather(1, order[:, : leaves - 1])
    alone = torch.eye(leaves, dtype=torch.bool, device=rank.device).expand(images, -1, -1)
    return torch.cat([alone, roots == of_merge[..., None]], dim=1)


def _roots(above: Int[Tensor, "... M"]) -> Int[Tensor, "... M"]:
    """Where each chain of merges ends; every step halves it."""
    for _ in range(max(1, math.ceil(math.log2(above.shape[-1])))):
        above = above.gather(-1, above)
    return above


def _halved(grid: tuple[int, int]) -> tuple[int, int]:
    return -(-grid[0] // POOL), -(-grid[1] // POOL)


def pooled(attention: Attention) -> tuple[Float[Tensor, "B M N"], Int[Tensor, " M"]]:
    """The mean map of each square of cells, the last of an odd number counted twice, and one cell of each square."""
    (h, w), (rows, columns) = attention.grid, _halved(attention.grid)
    total: Tensor | None = None
    for y in range(POOL):
        for x in range(POOL):
            cells = [
                min(POOL * row + y, h - 1) * w + min(POOL * column + x, w - 1)
                for row in range(rows)
                for column in range(columns)
            ]
            total = attention.at(cells) if total is None else total.add_(attention.at(cells))
    assert total is not None
    return total.div_(POOL**2), torch.tensor(cells, device=attention.scale.device)
