"""Leaves: the cells of a batch's grid are clustered by their attention, and every cell is given to a leaf.

Letters: B images, N cells of the grid h x w, M pooled cells, L leaves, n = 2 L - 1 nodes: leaves, then merges.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from diffseg.hierarchy.features import node_features
from diffseg.hierarchy.linkage import Linkage, average_linkage
from diffseg.method.aggregate import Attention
from diffseg.method.merge import Logged, symmetric_kl
from diffseg.transfer import constant
from diffseg.types import Bool, Float, Int

POOL = 2  # cells a side whose maps are averaged before linkage: a quarter of the maps for the same leaves


@dataclass(frozen=True)
class Leaves:
    """The leaves of a batch and the tree they make.

    cells: the leaf of each cell. merges: as of a `Linkage` whose clusters are leaves. features: LEAF of each node,
    those of merges in order of height. Leaves that `crops.carve` adds have no cells, and their merges no features.
    """

    cells: Int[Tensor, "B N"]
    merges: Linkage
    features: Int[Tensor, "B n 4"]


def grow(attention: Attention, most: int, pool: int = POOL) -> Leaves:
    """Cluster the maps of pooled cells, `pool` a side; the clusters before the last `most` - 1 merges are the leaves.

    Then every cell is given to the leaf whose mean map is nearest to its own.
    """
    maps, places = pooled(attention, pool)
    logged = Logged(maps)
    linkage = average_linkage(symmetric_kl(logged, logged))
    leaf, merges = last_merges(linkage, most)
    member = torch.nn.functional.one_hot(leaf, merges.into.shape[1]).mT.to(maps.dtype)
    size = member.sum(-1)
    means = (member @ maps) / size[..., None]
    near = Logged(means)
    cells = torch.cat([symmetric_kl(near, Logged(tile)).argmin(1) for tile in attention.tiles()], dim=-1)
    keys = means.gather(2, places.expand(*means.shape[:2], -1))
    return Leaves(cells, merges, node_features(keys, size, leaf, members(merges), _pooled(attention.grid, pool)))


def last_merges(linkage: Linkage, most: int) -> tuple[Int[Tensor, "B M"], Linkage]:
    """The leaf of each pooled cell, and the merges between leaves; leaves are numbered by their first cells."""
    count = linkage.into.shape[1]
    leaves = min(most, count)
    rank = linkage.height.argsort(dim=-1, stable=True).argsort(dim=-1)
    is_leaf = rank >= count - leaves
    number = is_leaf.cumsum(-1) - 1
    index = torch.arange(count, device=rank.device)
    leaf = number.gather(1, roots(linkage.into.where(~is_leaf, index)))
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
    holder = roots(merges.into[:, None, :].where(made, index))
    of_merge = merges.into.gather(1, order[:, : leaves - 1])
    alone = torch.eye(leaves, dtype=torch.bool, device=rank.device).expand(images, -1, -1)
    return torch.cat([alone, holder == of_merge[..., None]], dim=1)


def roots(above: Int[Tensor, "... M"]) -> Int[Tensor, "... M"]:
    """Where each chain of merges ends; every step halves it."""
    for _ in range(max(1, math.ceil(math.log2(above.shape[-1])))):
        above = above.gather(-1, above)
    return above


def _pooled(grid: tuple[int, int], pool: int) -> tuple[int, int]:
    return -(-grid[0] // pool), -(-grid[1] // pool)


def pooled(attention: Attention, pool: int) -> tuple[Float[Tensor, "B M N"], Int[Tensor, " M"]]:
    """The mean map of each square of cells, the last of an odd number counted twice, and one cell of each square."""
    total: Tensor | None = None
    for cells in _squares(attention.grid, pool):
        maps = attention.at(cells)
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total.div_(pool**2), constant(cells, torch.long, attention.scale.device)


@lru_cache(maxsize=64)
def _squares(grid: tuple[int, int], pool: int) -> list[tuple[int, ...]]:
    """One cell of each square, again and again until each is named."""
    (h, w), (rows, columns) = grid, _pooled(grid, pool)
    places = product(range(pool), range(pool))
    cells = [
        [(min(pool * row + y, h - 1), pool * column + x) for row, column in product(range(rows), range(columns))]
        for y, x in places
    ]
    return [tuple(y * w + min(x, w - 1) for y, x in each) for each in cells]
