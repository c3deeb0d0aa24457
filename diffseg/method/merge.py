"""Iterative attention merging: thousands of attention maps become a few object proposals.

Letters: B images, A anchors, P proposals (padded with zeros to the most any image has), Q maps compared with,
N cells of the grid. Maps are densities, N times the probability (see aggregate.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffseg.method.aggregate import Attention
from diffseg.transfer import download, upload
from diffseg.types import Bool, Float, Int

RESOLUTION = 1e-5  # nats: nearer maps are equal, for rounding in float32 puts a map this far from itself
SWING = 0.1  # a proposal is stable when thresholds a tenth lower and a tenth higher collect the same cells


@dataclass(frozen=True)
class Proposals:
    """The proposals of a batch.

    maps: mean attention of each proposal, zeros where an image has fewer than the most.
    counts: proposals of each image; 0 where no map was near any other.
    stability: of each proposal, in [0, 1]: the cells it collects at thresholds 10 % lower as a share of those at 10 %
    higher, a cell collected through several maps counting for each.
    trace: proposals of each image after each iteration.
    """

    maps: Float[Tensor, "B P N"]
    counts: tuple[int, ...]
    stability: Float[Tensor, "B P"]
    trace: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Merged:
    """Maps between iterations, each with the number of cells it stands for at lower and at higher thresholds."""

    maps: Float[Tensor, "B P N"]
    low: Float[Tensor, "B P"]
    high: Float[Tensor, "B P"]


def merge(attention: Attention, thresholds: Sequence[float], anchors_per_side: int) -> Proposals:
    """Merge maps nearer than a threshold, once for each threshold (section 3.2 of the paper).

    First each anchor becomes the mean of all maps near it. Then, again and again, maps are visited in order: one that
    no earlier one collected becomes an anchor, and the mean of every map near it, collected before or not, a proposal.
    A map with a zero in it is infinitely far from every map, itself included, and is collected by none.
    """
    first, *others = (max(tau, RESOLUTION) for tau in thresholds)
    anchors = Logged(attention.at(anchor_cells(attention.grid, anchors_per_side)))
    merged = _around_anchors(attention, anchors, first)
    counts = [[merged.maps.shape[1]] * len(merged.maps)]
    if not attention.floor:  # else every anchor is near itself
        kept = [np.flatnonzero(row) for row in download(merged.high > 0)[0]]
        merged = _Merged(*(_select(part, kept) for part in (merged.maps, merged.low, merged.high)))
        counts = [[len(rows) for rows in kept]]
    for tau in others:
        logged = Logged(merged.maps)
        distance = symmetric_kl(logged, logged)
        visited = [visit_in_order(near) for near in download(distance < tau)[0]]
        distance = _select(distance, visited, padding=math.inf)
        merged = _counted((distance < tau).float() @ merged.maps, distance, tau, merged.low, merged.high)
        counts.append([len(rows) for rows in visited])
    stability = (merged.low / merged.high).nan_to_num(0.0)
    return Proposals(merged.maps, tuple(counts[-1]), stability, tuple(zip(*counts, strict=True)))


def anchor_cells(grid: tuple[int, int], per_side: int) -> tuple[int, ...]:
    """Cells of an even, centred lattice of at most `per_side` anchors along each axis, row by row."""

    def positions(side: int) -> range:
        count = min(per_side, side)
        step = (side - 1) // (count - 1) if count > 1 else 1
        start = (side - 1 - step * (count - 1)) // 2
        return range(start, start + step * (count - 1) + 1, step)

    h, w = grid
    return tuple(y * w + x for y in positions(h) for x in positions(w))


class Logged:
    """Maps with their logarithms and their negative entropies, which every distance needs."""

    def __init__(self, maps: Float[Tensor, "B P N"]) -> None:
        self.maps = maps
        self.logs = maps.log()
        self.own = (maps * self.logs).mean(-1)


def symmetric_kl(p: Logged, q: Logged) -> Float[Tensor, "B P Q"]:
    """Pairwise distance `(KL(p||q) + KL(q||p)) / 2` in nats between maps given as densities.

    Expanding the logarithm turns the P*Q*N sum into two matrix products. Not finite where either map has a zero.
    """
    share = -0.5 / p.maps.shape[-1]
    own = (p.own[:, :, None] + q.own[:, None, :]) / 2
    return torch.baddbmm(own, p.maps, q.logs.mT, alpha=share).baddbmm_(p.logs, q.maps.mT, alpha=share)


def visit_in_order(near: Bool[np.ndarray, "P P"]) -> Int[np.ndarray, " R"]:
    """The maps that become anchors: those that no earlier anchor collected. A map that collects nothing is left out.

    Rows are held as integers with a bit per map, so that a visit takes a few operations.
    """
    count = len(near)
    bits = [int.from_bytes(row.tobytes(), "little") for row in np.packbits(near, axis=-1, bitorder="little")]
    anchors = []
    waiting = (1 << count) - 1
    while waiting:
        lowest = (waiting & -waiting).bit_length() - 1
        waiting &= ~(bits[lowest] | 1 << lowest)
        if bits[lowest]:
            anchors.append(lowest)
    return np.array(anchors, dtype=np.int64)


def _around_anchors(attention: Attention, anchors: Logged, tau: float) -> _Merged:
    """The mean of all maps near each anchor; each map stands for one cell at any threshold."""
    maps = torch.zeros_like(anchors.maps)
    distances = []
    for tile in attention.tiles():
        distances.append(symmetric_kl(anchors, Logged(tile)))
        maps.baddbmm_((distances[-1] < tau).float(), tile)
    distance = torch.cat(distances, dim=-1)
    one = maps.new_ones(()).expand(maps.shape[0], distance.shape[-1])
    return _counted(maps, distance, tau, one, one)


def _counted(
    total: Float[Tensor, "B P N"],
    distance: Float[Tensor, "B P Q"],
    tau: float,
    low: Float[Tensor, "B Q"],
    high: Float[Tensor, "B Q"],
) -> _Merged:
    """From sums of maps to their means, zero where nothing was near, and the cells that each stands for."""
    near = [(distance < limit).float() for limit in (tau, tau * (1 - SWING), tau * (1 + SWING))]
    count = near[0].sum(-1, keepdim=True).clamp_(min=1)
    return _Merged(total / count, (near[1] @ low[..., None])[..., 0], (near[2] @ high[..., None])[..., 0])


def _select(
    values: Float[Tensor, "B P ..."], rows: list[Int[np.ndarray, " _"]], padding: float = 0.0
) -> Float[Tensor, "B _ ..."]:
    """The named rows of each image, filled up to the longest image and to one row at least."""
    if all(len(image) == values.shape[1] for image in rows):
        return values
    longest = max([1, *(len(image) for image in rows)])
    index = np.zeros((len(rows), longest), dtype=np.int64)
    real = np.zeros((len(rows), longest, *[1] * (values.ndim - 2)), dtype=bool)
    for image, kept in enumerate(rows):
        index[image, : len(kept)], real[image, : len(kept)] = kept, True
    places, void = upload(values.device, index.reshape(real.shape), ~real)
    return values.gather(1, places.expand(-1, -1, *values.shape[2:])).masked_fill_(void, padding)
