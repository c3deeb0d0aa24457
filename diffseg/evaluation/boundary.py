"""Boundary matching: how many pixels of two outlines can be paired one to one, each pair within reach of each other.

The count is that of a maximum matching, as the BSDS benchmark counts boundary pixels (Martin, Fowlkes and Malik,
"Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and Texture Cues", 2004).
Not scipy's maximum_bipartite_matching: it gives the same counts, but cannot begin with the nearest pairs, and takes
hundreds of times as long where 3,700 pixels of two outlines nearly coincide.
Letters: F pixels of the outline that has fewer, K offsets within reach of a pixel, nearest first.
"""

from collections import deque

import numpy as np

from diffseg.types import Bool, Int


def max_matching(first: Bool[np.ndarray, "H W"], second: Bool[np.ndarray, "H W"], reach: float) -> int:
    """Pairs in a maximum matching between pixels of two masks that lie at most `reach` pixels (Euclidean) apart."""
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
