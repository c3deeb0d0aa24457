"""Cleanup: small regions of a label map are merged into their surroundings, until none is left.

Letters: R runs of equal pixels, E pairs of adjacent runs (see rle.py); a region is named by its first run.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffseg.labels.rle import Adjacency, RunLengths, adjacent_runs, connected_components, union_find
from diffseg.types import Bool, Int

HALF = 32  # bits: two pixel counts share a 64-bit rank, so that one maximum compares by both


def clean(rle: RunLengths, min_share: float) -> RunLengths:
    """Merge every connected region below a share of its image into the neighbour with the longest common border.

    Islands, holes and slivers are such regions. Regions merged in one round take the label of the largest of them.
    Every region left is large enough, or alone in its image.
    """
    if min_share == 0:
        return rle
    pairs = adjacent_runs(rle)
    least = rle.per_run([h * w * min_share for h, w in rle.sizes])
    while True:
        region = connected_components(rle.label, pairs)
        area = torch.zeros_like(region).scatter_add_(0, region, rle.length)
        small = area[region] < least
        source, target = _longest_borders(region, area, small, pairs)
        if len(source) == 0:
            return rle
        group = union_find(len(region), source, target)[region]
        rle = replace(rle, label=rle.label[_largest(group, region, area)])


def _longest_borders(
    region: Int[Tensor, " R"], area: Int[Tensor, " R"], small: Bool[Tensor, " R"], pairs: Adjacency
) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
    """Small regions and for each its neighbour: the longest border, then the largest area, then the first."""
    own, other = torch.cat([pairs.first, pairs.second]), torch.cat([pairs.second, pairs.first])
    use = small[own] & (region[own] != region[other])
    count = len(region)
    keys, border_of = torch.unique(region[own[use]] * count + region[other[use]], return_inverse=True)
    border = torch.zeros_like(keys).scatter_add_(0, border_of, pairs.border.repeat(2)[use])
    source, target = keys // count, keys % count
    rank = (border << HALF) + area[target]
    best = torch.zeros_like(region).scatter_reduce_(0, source, rank, "amax")
    chosen = torch.full_like(region, count)
    chosen.scatter_reduce_(0, source, target.where(rank == best[source], count), "amin")
    named = (chosen < count).nonzero().flatten()
    return named, chosen[named]


def _largest(group: Int[Tensor, " R"], region: Int[Tensor, " R"], area: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    """For each run the largest region of its group; of equals the first."""
    count = len(group)
    rank = (area[region] << HALF) + (count - region)
    best = torch.zeros_like(rank).scatter_reduce_(0, group, rank, "amax")[group]
    return count - (best & (1 << HALF) - 1)
