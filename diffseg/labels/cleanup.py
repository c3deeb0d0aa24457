"""Cleanup: small regions of a label map are merged into their surroundings, until none is left.

Letters: R runs of equal pixels, E pairs of adjacent runs (see rle.py); a region is named by its first run.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffseg.labels.rle import Adjacency, RunLengths, adjacent_runs, connected_components
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
    least = rle.per_run([h * w * min_share for h, w in rle.sizes], torch.float32)
    while True:
        region = connected_components(rle.label, pairs)
        area = torch.zeros_like(region).scatter_add_(0, region, rle.length)
        chosen = _longest_borders(region, area, area[region] < least, pairs)
        if chosen is None:
            return rle
        rle = replace(rle, label=rle.label[_largest(chosen[region], region, area)])


def _longest_borders(
    region: Int[Tensor, " R"], area: Int[Tensor, " R"], small: Bool[Tensor, " R"], pairs: Adjacency
) -> Int[Tensor, " R"] | None:
    """The last of the neighbours that each region is merged into one after the other, itself if it is large enough.

    A small region is merged into the neighbour with the longest border, then the largest area, then the first. None
    where there is nothing to merge.
    """
    own, other = torch.cat([pairs.first, pairs.second]), torch.cat([pairs.second, pairs.first])
    use = (small[own] & (region[own] != region[other])).nonzero().flatten()
    if not len(use):
        return None
    count = len(region)
    keys, order = (region[own[use]] * count + region[other[use]]).sort()
    border_of = torch.nn.functional.pad((keys[1:] != keys[:-1]).cumsum(0), (1, 0))
    borders = torch.zeros_like(keys).scatter_add_(0, border_of, pairs.border.repeat(2)[use[order]])
    source, target = keys // count, keys % count
    rank = (borders[border_of] << HALF) + area[target]
    best = torch.zeros_like(region).scatter_reduce_(0, source, rank, "amax")
    chosen = torch.full_like(region, count)
    chosen.scatter_reduce_(0, source, target.where(rank == best[source], count), "amin")
    index = torch.arange(count, device=region.device)
    into = chosen.where(chosen < count, index)
    into = index.where((into[into] == index) & (index < into), into)  # of two that chose each other the first stays
    for _ in range(len(use).bit_length()):
        into = into[into]
    return into


def _largest(group: Int[Tensor, " R"], region: Int[Tensor, " R"], area: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    """For each run the largest region of its group; of equals the first."""
    count = len(group)
    rank = (area[region] << HALF) + (count - region)
    best = torch.zeros_like(rank).scatter_reduce_(0, group, rank, "amax")[group]
    return count - (best & (1 << HALF) - 1)
