"""Refinement: k-means on the attention maps, started from the proposals.

Letters: P clusters, N maps over N cells.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffseg.method.aggregate import Attention
from diffseg.method.merge import Proposals
from diffseg.types import Float, Int

ROUNDS = 300  # scikit-learn's limits, with which the published results were made
TOLERANCE = 1e-4  # of the mean variance of a cell: centres that move less have converged


def refine(attention: Attention, proposals: Proposals) -> Proposals:
    """Replace each proposal by the mean of the maps nearest to it once the clusters have converged.

    A proposal without maps is dropped; the others keep their order and stability.
    """
    maps, stability, counts = torch.zeros_like(proposals.maps), torch.zeros_like(proposals.stability), []
    whole = attention.whole()
    for image, count in enumerate(proposals.counts):
        if count == 0:
            counts.append(0)
            continue
        nearest = cluster(whole[image], proposals.maps[image, :count])
        kept = torch.unique(nearest)
        means, _ = _means(whole[image], nearest, count)
        maps[image, : len(kept)] = means[kept]
        stability[image, : len(kept)] = proposals.stability[image, kept]
        counts.append(len(kept))
    return replace(proposals, maps=maps, stability=stability, counts=tuple(counts))


def cluster(maps: Float[Tensor, "M N"], centres: Float[Tensor, "P N"]) -> Int[Tensor, " M"]:
    """Lloyd's algorithm in Euclidean distance from given centres; the cluster of each map.

    A cluster without maps keeps its centre.
    """
    least = TOLERANCE * maps.var(dim=0, correction=0).mean()
    nearest = _nearest(maps, centres)
    for _ in range(ROUNDS):
        means, size = _means(maps, nearest, len(centres))
        moved = means.where(size[:, None] > 0, centres)
        shift = (moved - centres).square().sum()
        centres, before = moved, nearest
        nearest = _nearest(maps, centres)
        if torch.equal(nearest, before) or shift <= least:
            break
    return nearest


def _nearest(maps: Float[Tensor, "M N"], centres: Float[Tensor, "P N"]) -> Int[Tensor, " M"]:
    """Nearest centre of each map; the map's own square is left out, since it is equal for all centres."""
    own = centres.square().sum(-1)
    return torch.addmm(own, maps, centres.T, alpha=-2).argmin(-1)


def _means(
    maps: Float[Tensor, "M N"], nearest: Int[Tensor, " M"], count: int
) -> tuple[Float[Tensor, "P N"], Int[Tensor, " P"]]:
    """Mean map of each cluster, zero where it has none, and the number of its maps."""
    member = torch.nn.functional.one_hot(nearest, count).T.to(maps.dtype)
    size = member.sum(-1)
    return (member @ maps) / size[:, None].clamp(min=1), size.long()
