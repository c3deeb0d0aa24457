"""Normalised cut: the cells of an image are split in K by the spectrum of the graph of their similar features.

As AutoSC does it, on the graph of DiffCut (arXiv 2406.02842): K from the gaps between eigenvalues, the segments from a
pivoted QR of the eigenvectors (cluster_qr, arXiv 1708.07481), and from each segment the prototype that pixels are held
against. Letters: B images, n cells, C channels, K segments.
"""

import torch
from torch import Tensor

from diffseg.method.merge import Proposals
from diffseg.types import AttentionError, Float, Int

POWER = 10  # of similarities, as published: it leaves each cell few neighbours
MOST = 40  # segments that are looked for where nobody says how many
EPSILON = 1e-6  # as published, beside the mean of eigenvalues; the first of them is zero


def normalised_cut(features: Float[Tensor, "B n C"], clusters: int | None) -> Proposals:
    """Segments of each image as the similarity of every cell to their prototypes, which are means of unit vectors.

    clusters: K, at most n; None: 2..MOST, each image's own.
    Raises AttentionError naming the images whose features are not finite.
    """
    found = features.float()
    sound = found.isfinite().all(-1).all(-1)
    if bad := (~sound).nonzero().flatten().tolist():
        raise AttentionError(f"the model's features are not finite for images {bad}", tuple(bad))
    unit = torch.nn.functional.normalize(found, dim=-1)
    values, vectors = torch.linalg.eigh(laplacian(unit))
    n = unit.shape[1]
    counts = [min(clusters, n) if clusters else gap(each, min(MOST, n - 1)) for each in values.cpu()]
    maps = unit.new_zeros(len(unit), max(counts), n)
    kept = []
    for image, count in enumerate(counts):
        nearest = cluster_qr(vectors[image, :, :count])
        member = torch.nn.functional.one_hot(nearest, count).T.to(unit.dtype)
        held = member.sum(-1, keepdim=True)
        similar = (member @ unit[image] / held.clamp(min=1)) @ unit[image].T
        real = held[:, 0] > 0
        similar = similar[real] - similar[real].min()  # at least zero, as attention is: no pixel's best changes
        maps[image, : len(similar)] = similar
        kept.append(len(similar))
    return Proposals(maps, tuple(kept), maps.new_ones(maps.shape[:2]), tuple((each,) for each in kept))


def laplacian(unit: Float[Tensor, "B n C"]) -> Float[Tensor, "B n n"]:
    """The symmetric Laplacian of similarities, brought to 0..1 an image and raised to POWER."""
    similar = unit @ unit.mT
    low, high = (edge(similar, dim=(-2, -1), keepdim=True) for edge in (torch.amin, torch.amax))
    weights = ((similar - low) / (high - low).clamp(min=EPSILON)) ** POWER
    root = weights.sum(-1).clamp(min=EPSILON).rsqrt()
    return torch.eye(unit.shape[1], device=unit.device) - root[:, :, None] * weights * root[:, None, :]


def gap(values: Float[Tensor, " n"], most: int) -> int:
    """The K, from 2 to `most`, whose next eigenvalue stands out most from the mean of the first K; 1 of one cell."""
    if most < 2:
        return len(values)
    below = values.double()[:most].cumsum(0)[1:] / torch.arange(2, most + 1)
    ratio = (values.double()[2 : most + 1] - below) / (below + EPSILON)
    return 2 + int(ratio.argmax())


def cluster_qr(vectors: Float[Tensor, "n K"]) -> Int[Tensor, " n"]:
    """The segment of each cell from K eigenvectors: K cells that differ most span the axes the others are held against.

    Those cells are the pivots of a QR with column pivoting, found by Gram-Schmidt: torch has no such QR.
    """
    left, count = vectors.clone(), vectors.shape[1]
    pivots = []
    for _ in range(count):
        pivots.append(left.square().sum(-1).argmax())
        axis = torch.nn.functional.normalize(left[pivots[-1]], dim=-1)
        left = left - (left @ axis)[:, None] * axis
    first, _, second = torch.linalg.svd(vectors[torch.stack(pivots)].T)
    nearest: Tensor = (vectors @ (first @ second)).abs().argmax(-1)
    return nearest
