"""The method word for word in float64, one map at a time: slow, and with nothing in common with the code it judges.

Written from section 3.2 of arXiv 2308.12469 and the behaviour of its published implementation. NumPy only.
"""

import numpy as np


def enlarge(image, size):
    """Bilinear with half-pixel centres and clamped edges, one output pixel after the other."""
    rows, columns = image.shape
    out = np.empty(size)
    for y in range(size[0]):
        sy = min(max((y + 0.5) * rows / size[0] - 0.5, 0), rows - 1)
        y0 = int(sy)
        y1 = min(y0 + 1, rows - 1)
        for x in range(size[1]):
            sx = min(max((x + 0.5) * columns / size[1] - 0.5, 0), columns - 1)
            x0 = int(sx)
            x1 = min(x0 + 1, columns - 1)
            upper = image[y0, x0] * (1 - (sx - x0)) + image[y0, x1] * (sx - x0)
            lower = image[y1, x0] * (1 - (sx - x0)) + image[y1, x1] * (sx - x0)
            out[y, x] = upper * (1 - (sy - y0)) + lower * (sy - y0)
    return out


def aggregate(levels, grid):
    """A map over the whole grid for each cell of it: [h * w, h, w]."""
    h, w = grid
    factors = [round((h * w / len(level)) ** 0.5) for level in levels]
    sides = [1 / k for k in factors]
    total = np.zeros((h * w, h, w))
    for level, k, side in zip(levels, factors, sides, strict=True):
        enlarged = [enlarge(np.asarray(row, np.float64).reshape(h // k, w // k), grid) for row in level]
        normalised = [each / each.sum() for each in enlarged]
        for y in range(h):
            for x in range(w):
                total[y * w + x] += side / sum(sides) * normalised[(y // k) * (w // k) + x // k]
    return total


def distance(p, q):
    """Symmetric Kullback-Leibler divergence in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((p * (np.log(p) - np.log(q))).sum() + (q * (np.log(q) - np.log(p))).sum()) / 2


def anchors(grid, per_side):
    """Cells of the anchors, row by row."""

    def axis(side):
        count = min(per_side, side)
        if count == 1:
            return [(side - 1) // 2]
        step = (side - 1) // (count - 1)
        start = ((side - 1) - step * (count - 1)) // 2
        return [start + step * i for i in range(count)]

    return [y * grid[1] + x for y in axis(grid[0]) for x in axis(grid[1])]


def merge(attention, grid, thresholds, per_side):
    """Proposals and their number after each iteration."""
    maps = []
    for anchor in anchors(grid, per_side):
        near = [other for other in attention if distance(attention[anchor], other) < thresholds[0]]
        if near:
            maps.append(np.mean(near, axis=0))
    counts = [len(maps)]
    for tau in thresholds[1:]:
        matched = [False] * len(maps)
        merged = []
        for i, anchor in enumerate(maps):
            if matched[i]:
                continue
            near = [j for j, other in enumerate(maps) if distance(anchor, other) < tau]
            for j in near:
                matched[j] = True
            if near:
                merged.append(np.mean([maps[j] for j in near], axis=0))
        maps = merged
        counts.append(len(maps))
    return maps, counts


def kmeans(attention, centres):
    """Lloyd's algorithm to rest; the mean of each cluster that has any map."""
    centres = [centre.copy() for centre in centres]
    before = None
    while True:
        nearest = [int(np.argmin([((each - centre) ** 2).sum() for centre in centres])) for each in attention]
        if nearest == before:
            break
        before = nearest
        for c in set(nearest):
            centres[c] = np.mean([each for each, at in zip(attention, nearest, strict=True) if at == c], axis=0)
    return [centres[c] for c in sorted(set(nearest))]


def segment(levels, grid, thresholds, per_side, size, refine=False):
    """Labels without gaps and the number of proposals after each iteration."""
    attention = aggregate(levels, grid)
    proposals, counts = merge(attention, grid, thresholds, per_side)
    if refine:
        proposals = kmeans(attention, proposals)
    if not proposals:
        return np.zeros(size, np.uint8), counts
    strongest = np.argmax([enlarge(proposal, size) for proposal in proposals], axis=0)
    return np.unique(strongest, return_inverse=True)[1].reshape(size).astype(np.uint8), counts


def adapt_to_pixels(image, mask, dilations, rounds):
    """Pixel-adaptive refinement of a soft mask [H, W], from section 3.3 of Araslanov and Roth (2020), word for word."""
    height, width, _ = image.shape
    ring = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    weights = {}
    for y in range(height):
        for x in range(width):
            taps = [
                (min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1), (dy, dx) == (0, 0))
                for d in dilations
                for dy, dx in ring
            ]
            colours = np.array([image[place[:2]] for place in taps], np.float64) / 255
            deviation = colours.std(0, ddof=1)
            around = [place[:2] for place in taps if not place[2]]
            apart = [
                abs(image[place] - image[y, x].astype(np.float64)) / 255 / (1e-8 + 0.1 * deviation) for place in around
            ]
            kernel = np.exp([-each.mean() for each in apart])
            weights[y, x] = list(zip(around, kernel / kernel.sum(), strict=True))
    for _ in range(rounds):
        mask = np.array(
            [[sum(w * mask[place] for place, w in weights[y, x]) for x in range(width)] for y in range(height)]
        )
    return mask
