"""Agreement of two partitions of one image, whatever their ids: regions, pairs of pixels, boundaries.

Letters: H x W pixels, S segments of the prediction, R regions of the truth, F pixels of the outline that has fewer, K
offsets within reach of a pixel, nearest first.
Pixels of the truth below 0 are ignored everywhere. Pixels of the prediction below 0 are in no segment.
"""

from collections import deque

import numpy as np

from diffseg.types import Bool, Int, Integer

SORTED_FROM = 1 << 20  # ids: a table of as many entries is made below, ids are sorted beyond
TOLERANCE = 0.0075  # of the image's diagonal: the distance up to which BSDS matches two boundaries


def overlaps(
    prediction: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, "S R"], Int[np.ndarray, " R"]]:
    """Pixels of each (segment, region), and of each region the pixels in no segment; only ids that occur are listed."""
    labelled = truth >= 0
    segments, segment = _ranked(prediction[labelled])
    regions, region = _ranked(truth[labelled])
    cells = segment * len(regions) + region
    table = np.bincount(cells, minlength=len(segments) * len(regions)).reshape(len(segments), len(regions))
    claimed = segments >= 0
    return table[claimed], table[~claimed].sum(0)


def _ranked(ids: Integer[np.ndarray, " n"]) -> tuple[Integer[np.ndarray, " k"], Int[np.ndarray, " n"]]:
    """The ids that occur, all below zero as -1, and the rank of each: `np.unique` without its sort where possible."""
    ids = np.maximum(ids.astype(np.int64), -1)
    if ids.max(initial=0) > SORTED_FROM:
        return np.unique(ids, return_inverse=True)
    present = np.flatnonzero(np.bincount(ids + 1))
    ranks = np.zeros(present.max(initial=0) + 1, np.int64)
    ranks[present] = np.arange(len(present))
    return present - 1, ranks[ids + 1]


def covering(table: Int[np.ndarray, "S R"], unclaimed: Int[np.ndarray, " R"]) -> float:
    """How well the segments cover the regions, in [0, 1]: the best overlap of each, weighted by its area.

    Section 3.1.3 of Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation" (2011).
    NaN without labelled pixels.
    """
    regions = table.sum(0) + unclaimed
    if regions.sum() == 0:
        return float("nan")
    if len(table) == 0:
        return 0.0
    union = table.sum(1)[:, None] + regions[None, :] - table
    return float((regions * (table / union).max(0)).sum() / regions.sum())


def adjusted_rand(table: Int[np.ndarray, "S R"], unclaimed: Int[np.ndarray, " R"]) -> float:
    """Adjusted Rand index (Hubert and Arabie, 1985): 1 for equal partitions, 0 on average for random ones.

    The pixels in no segment count as one segment. NaN without labelled pixels.
    """
    table = np.vstack([table, unclaimed]).astype(float)
    pixels = table.sum()
    if pixels == 0:
        return float("nan")
    together, segments, regions = (_pairs(part) for part in (table, table.sum(1), table.sum(0)))
    chance = segments * regions / max(1.0, pixels * (pixels - 1) / 2)
    most = (segments + regions) / 2
    return float((together - chance) / (most - chance)) if most != chance else 1.0


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())


def boundaries(label_map: Integer[np.ndarray, "H W"], labelled: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels whose right or lower neighbour has another id, both being labelled; one pixel wide."""
    edge = np.zeros(label_map.shape, bool)
    edge[:, :-1] |= (label_map[:, :-1] != label_map[:, 1:]) & labelled[:, :-1] & labelled[:, 1:]
    edge[:-1] |= (label_map[:-1] != label_map[1:]) & labelled[:-1] & labelled[1:]
    return edge


class Outline:
    """The boundaries of a label map, found once for all comparisons."""

    def __init__(self, label_map: Integer[np.ndarray, "H W"]) -> None:
        self.label_map, self.labelled = label_map, label_map >= 0
        self.edge = boundaries(label_map, self.labelled)

    def edge_where(self, labelled: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
        """The boundary between pixels that another label map does not ignore."""
        return self.edge if labelled.all() else boundaries(self.label_map, self.labelled & labelled)


def boundary_f(prediction: Outline, truth: Outline, tolerance: float = TOLERANCE) -> float:
    """Boundary F-measure: harmonic mean of the shares of predicted and of true boundary that are matched one to one.

    tolerance: of the diagonal, how far apart matched boundary pixels may lie. Predicted boundary in ignored pixels does
    not count. 1 where neither has a boundary.
    """
    predicted, true = prediction.edge_where(truth.labelled), truth.edge
    pixels = int(predicted.sum() + true.sum())
    pairs = max_matching(predicted, true, tolerance * float(np.hypot(*true.shape)))
    return 2 * pairs / pixels if pixels else 1.0


def max_matching(first: Bool[np.ndarray, "H W"], second: Bool[np.ndarray, "H W"], reach: float) -> int:
    """Pairs in a maximum matching between pixels of two masks that lie at most `reach` pixels (Euclidean) apart.

    The count is that of the BSDS benchmark (Martin, Fowlkes and Malik, "Learning to Detect Natural Image Boundaries
    Using Local Brightness, Color, and Texture Cues", 2004). Not scipy's maximum_bipartite_matching: it gives the same
    counts, but cannot begin with the nearest pairs, and takes hundreds of times as long where two outlines nearly
    coincide.
    """
    if first.sum() > second.sum():
        first, second = second, first
    near = _neighbours(first, second, reach)
    partners = _nearest_first(near, int(second.sum()))
    return _augmented(near, partners)


def _neighbours(few: Bool[np.ndarray, "H W"], many: Bool[np.ndarray, "H W"], reach: float) -> Int[np.ndarray, "F K"]:
    """For each pixel of `few` the numbers of the pixels of `many` within reach; -1 where an offset holds none."""
    rim = int(reach)
    rows, columns = np.mgrid[-rim : rim + 1, -rim : rim + 1].reshape(2, -1)
    apart = rows**2 + columns**2
    order = np.argsort(apart, kind="stable")[: np.count_nonzero(apart <= reach**2)]
    steps = rows[order] * (few.shape[1] + 2 * rim) + columns[order]
    from_, to = (np.flatnonzero(np.pad(mask, rim)) for mask in (few, many))
    number = np.full((few.shape[0] + 2 * rim) * (few.shape[1] + 2 * rim), -1)
    number[to] = np.arange(len(to))
    numbers: np.ndarray = number[from_[:, None] + steps]
    return numbers


def _nearest_first(near: Int[np.ndarray, "F K"], count: int) -> list[int]:
    """Greedy matching: a partner for each pixel where one was free, -1 elsewhere; the nearest pairs are made first.

    Pixels that take the same step reach different pixels, so that a step is one operation on all of them.
    """
    free, partners = np.ones(count, bool), np.full(len(near), -1)
    unmatched = np.arange(len(near))
    for step in near.T:
        candidate = step[unmatched]
        hit = candidate >= 0
        hit[hit] = free[candidate[hit]]
        partners[unmatched[hit]] = candidate[hit]
        free[candidate[hit]] = False
        unmatched = unmatched[~hit]
    found: list[int] = partners.tolist()
    return found


def _augmented(near: Int[np.ndarray, "F K"], partners: list[int]) -> int:
    """Size of the matching once no augmenting path is left.

    Pixels seen by a search without success cannot lie on a later augmenting path and are not visited again.
    """
    owners = {partner: pixel for pixel, partner in enumerate(partners) if partner >= 0}
    seen: set[int] = set()
    for start in [pixel for pixel, partner in enumerate(partners) if partner < 0]:
        queue, came = deque([start]), dict[int, int]()
        end = None
        while queue and end is None:
            pixel = queue.popleft()
            for neighbour in near[pixel][near[pixel] >= 0].tolist():
                if neighbour in seen or neighbour in came:
                    continue
                came[neighbour] = pixel
                if neighbour not in owners:
                    end = neighbour
                    break
                queue.append(owners[neighbour])
        if end is None:
            seen.update(came)
        while end is not None:
            pixel = came[end]
            before = partners[pixel]
            partners[pixel], owners[end] = end, pixel
            end = before if before >= 0 else None
    return len(owners)
