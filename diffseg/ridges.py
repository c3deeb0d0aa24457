"""Ridges: how much attention changes where two pieces of an image's leaves touch, and what is parted along them.

Objects that are alike and touch attend to one another, so that they are one segment. Where they touch, the maps of
cells on either side still differ more than within them (as the edges of TRACE, ICLR 2026). A byte is kept for each
border between connected pieces of leaves; with it any cut of the tree is split without the attention.

No torch here: readers of finished labels split too. Letters: h x w cells, K pieces, E borders, I instances.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffseg.cut import components
from diffseg.types import Float, Int, Int32, UInt8

FAINT, STRONG = 1e-4, 1e2  # nats that the bytes 0 and 255 stand for, on a scale of logarithms
PASS = 0.1  # of a border, its lowest part, is below its ridge: its ends run into the ridges about both objects


def ridges_of(
    leaf_map: Int32[np.ndarray, "H W"], across: Float[np.ndarray, "h _"], down: Float[np.ndarray, "_ w"]
) -> UInt8[np.ndarray, " E"]:
    """The ridge of every border in a leaf map, in the order of `_borders`.

    across, down: of each edge between two cells beside each other, and above each other, the symmetric KL of their
    maps in nats; the grid of cells fills the leaf map.
    """
    strengths, (pieces, _) = [], components(leaf_map)
    for turned, edges in ((pieces, across), (pieces.T, down.T)):
        row, column = np.nonzero(turned[:, 1:] != turned[:, :-1])
        rows, last = edges.shape
        edge = np.rint((column + 1) * ((last + 1) / turned.shape[1])).astype(int).clip(1, last) - 1
        strengths.append(edges[row * rows // turned.shape[0], edge])
    strength, (_, border) = np.concatenate(strengths), _borders(pieces)
    pixels = np.bincount(border)
    lowest = np.cumsum(pixels) - pixels + ((pixels - 1) * PASS).astype(int)
    ridge = strength[np.lexsort((strength, border))][lowest]
    share = np.log(np.maximum(ridge, FAINT) / FAINT) / np.log(STRONG / FAINT)
    ridges: np.ndarray = (share * 255).round().clip(0, 255).astype(np.uint8)
    return ridges


def split(
    label_map: Int32[np.ndarray, "H W"], leaf_map: Int32[np.ndarray, "H W"], ridges: UInt8[np.ndarray, " E"]
) -> Int[np.ndarray, "H W"]:
    """The instances of a cut: pieces of one segment are joined over each border whose ridge is at most the mean of all.

    Returns a map of their numbers, 0..I-1. Raises ValueError where the ridges are of another leaf map.
    """
    pieces, _ = components(leaf_map)
    (low, high), _ = _borders(pieces)
    if len(ridges) != len(low):
        raise ValueError(f"{len(ridges)} ridges are not those of the {len(low)} borders in a leaf map")
    first = np.unique(pieces, return_index=True)[1]
    segment = label_map.ravel()[first]
    joined = (segment[low] == segment[high]) & (ridges <= ridges.sum() / max(1, len(ridges)))
    graph = coo_array((np.ones(joined.sum(), bool), (low[joined], high[joined])), shape=(len(first), len(first)))
    numbers: np.ndarray = connected_components(graph, directed=False)[1][pieces]
    return numbers


def _borders(pieces: Int[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "2 E"], Int[np.ndarray, " n"]]:
    """Pairs of pieces that touch, in order, and the border of each two pixels beside, then above each other."""
    turns = [(turned, turned[:, 1:] != turned[:, :-1]) for turned in (pieces, pieces.T)]
    pair = np.concatenate([[turned[:, :-1][there], turned[:, 1:][there]] for turned, there in turns], axis=1)
    count = int(pieces.max(initial=0)) + 1
    found, border = np.unique(pair.min(0) * np.int64(count) + pair.max(0), return_inverse=True)
    return np.stack([found // count, found % count]), border
