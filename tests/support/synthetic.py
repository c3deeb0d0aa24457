"""Attention with known regions: cells attend to their own region, less so with distance, with some noise."""

import numpy as np


def blobs(grid, count, seed):
    """A map of `count` regions: each cell belongs to the nearest of random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (count, 2)) * grid
    cells = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    return np.square(cells[:, :, None] - centres).sum(-1).argmin(-1)


def attention(regions, factors, seed, own=4.0, noise=0.3):
    """One float32 [n, n] map for each factor by which the grid of `regions` is made coarser; rows sum to one."""
    rng = np.random.default_rng(seed)
    h, w = regions.shape
    members = (regions[..., None] == np.arange(regions.max() + 1)).astype(np.float64)
    levels = []
    for k in factors:
        rows, columns = h // k, w // k
        share = members.reshape(rows, k, columns, k, -1).mean((1, 3)).reshape(rows * columns, -1)
        y, x = np.divmod(np.arange(rows * columns), columns)
        apart = (np.square(y[:, None] - y) + np.square(x[:, None] - x)) / (rows * columns)
        logits = own * share @ share.T - 2 * np.log1p(4 * apart) + noise * rng.standard_normal(apart.shape)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        levels.append((weights / weights.sum(-1, keepdims=True)).astype(np.float32))
    return levels
