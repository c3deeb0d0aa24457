"""Aggregation: attention maps of several resolutions become one map for every cell of the finest grid.

Input: levels [B, n, n], finest first, rows summing to one. Output: [B, N, N], a few rows of cells at a time.

Letters: B images, n cells of a level, N = h * w cells of the finest one, r of these at a time, k how many times coarser
a level is.

The result holds densities, N times the probability, so that a uniform map is one everywhere. Their logarithms are then
centred on zero, which keeps distances exact in reduced precision; means, ratios and argmax are not affected.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffseg.method.bilinear import bilinear
from diffseg.transfer import download, kept, upload
from diffseg.types import AttentionError, Float

SUM_TOLERANCE = 0.02  # half-precision softmax is off by a few thousandths; unnormalised scores by far more
TILE_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}  # of maps at a time: a processor's last cache, a share of a GPU


@dataclass(frozen=True)
class Attention:
    """The aggregated attention of a batch, computed where it is used: the whole of it takes 64 MB an image.

    finest: the finest level. scale: the factor of each of its maps in the sum.
    coarser: k of the other levels, and their maps over the finest keys, scaled alike.
    floor: least density.
    """

    grid: tuple[int, int]
    finest: Float[Tensor, "B N N"]
    scale: Float[Tensor, "B N"]
    coarser: tuple[tuple[int, Float[Tensor, "B _ _ N"]], ...]
    floor: float

    def tiles(self) -> Iterator[Float[Tensor, "B r N"]]:
        """The maps of all cells in order, some rows of cells at a time; each is overwritten by the next."""
        batch, n, _ = self.finest.shape
        together = math.lcm(*(k for k, _ in self.coarser))  # rows that a coarse cell cannot divide
        fitting = TILE_BYTES[self.finest.device.type] // (4 * batch * self.grid[1] * n)
        yield from self._by_rows(min(self.grid[0], max(1, fitting // together) * together))

    def whole(self) -> Float[Tensor, "B N N"]:
        """All maps at once."""
        [maps] = self._by_rows(self.grid[0])
        return maps

    def at(self, cells: tuple[int, ...]) -> Float[Tensor, "B A N"]:
        """The maps of some cells."""
        index, *coarse = _places(cells, self.grid[1], tuple(k for k, _ in self.coarser), self.scale.device)
        maps = self.finest[:, index].float() * self.scale[:, index, None]
        for (_, level), places in zip(self.coarser, coarse, strict=True):
            maps += level.flatten(1, 2)[:, places]
        return maps.clamp_(min=self.floor)

    def _by_rows(self, rows: int) -> Iterator[Float[Tensor, "B _ N"]]:
        h, w = self.grid
        batch, n, _ = self.finest.shape
        buffer = self.scale.new_empty(batch, rows * w, n)
        for top in range(0, h, rows):
            bottom = min(top + rows, h)
            tile = buffer[:, : (bottom - top) * w]
            cells = slice(top * w, bottom * w)
            torch.mul(self.finest[:, cells], self.scale[:, cells, None], out=tile)
            for k, level in self.coarser:
                repeated = tile.view(batch, (bottom - top) // k, k, w // k, k, n)
                repeated += level[:, top // k : bottom // k, None, :, None]
            yield tile.clamp_(min=self.floor) if self.floor else tile


@kept
def _places(cells: tuple[int, ...], width: int, factors: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Where the maps of cells lie among those of the finest level, and of each coarser one."""
    y, x = np.divmod(cells, width)
    return upload(device, *(y // k * (width // k) + x // k for k in (1, *factors)))


def aggregate(levels: Sequence[Float[Tensor, "B _ _"]], grid: tuple[int, int], floor: float = 0.0) -> Attention:
    """Bring every level to the finest grid and average, finer levels weighing more (section 3.2 of the paper).

    Keys are interpolated, then each map is normalised, then queries are repeated: in this order, as published.

    floor: least probability of the result; 0 leaves zeros as they are.

    Raises ValueError where shapes do not fit the grid, AttentionError naming the images whose rows are no
    distributions.
    """
    factors = coarseness(levels, grid)
    weights = [1 / k / sum(1 / other for other in factors) for k in factors]
    finest, *others = levels
    sums = [level.sum(-1, dtype=torch.float32) for level in levels]
    _check_distributions(sums)
    n = grid[0] * grid[1]
    coarser = [
        (k, _on_finest_keys(level, grid, k).mul_(n * weight))
        for k, weight, level in zip(factors[1:], weights[1:], others, strict=True)
    ]
    return Attention(grid, finest, n * weights[0] / sums[0], _folded(coarser), n * floor)


def coarseness(levels: Sequence[Float[Tensor, "B _ _"]], grid: tuple[int, int]) -> list[int]:
    """How many times coarser than the grid each level is; ValueError where one does not fit."""
    if not levels:
        raise ValueError("attention maps are needed for at least one level, got an empty list")
    h, w = grid
    found = []
    for level in levels:
        n = level.shape[-1]
        k = round((h * w / n) ** 0.5)
        if level.ndim != 3 or level.shape[-2] != n or level.shape[0] != levels[0].shape[0]:
            raise ValueError(f"each level must be [{levels[0].shape[0]}, n, n], got {list(level.shape)}")
        if k < 1 or h % k or w % k or (h // k) * (w // k) != n:
            raise ValueError(f"a level of {n} cells is no {h} x {w} grid divided by an integer")
        found.append(k)
    if found[0] != 1 or sorted(found) != found:
        raise ValueError(f"levels come finest first, the finest {h} x {w}; got {[lv.shape[-1] for lv in levels]} cells")
    return found


def _on_finest_keys(level: Float[Tensor, "B n n"], grid: tuple[int, int], k: int) -> Float[Tensor, "B hk wk N"]:
    """Normalised maps over the finest keys, for the coarse queries they belong to."""
    h, w = grid
    down, across = bilinear(h // k, h, level.device), bilinear(w // k, w, level.device)
    keys = down @ (level.float().unflatten(-1, (h // k, w // k)) @ across.T)
    keys /= keys.sum((-2, -1), keepdim=True)
    maps: Tensor = keys.flatten(2).unflatten(1, (h // k, w // k))
    return maps


def _folded(
    levels: Sequence[tuple[int, Float[Tensor, "B _ _ N"]]],
) -> tuple[tuple[int, Float[Tensor, "B _ _ N"]], ...]:
    """Fold the sum into fewer terms: each level is added to the next finer one whose cells lie inside its own."""
    left: list[tuple[int, Tensor]] = []
    for index, (k, level) in reversed(list(enumerate(levels))):
        finer = next(((other, maps) for other, maps in reversed(levels[:index]) if k % other == 0), None)
        if finer is None:
            left.append((k, level))
            continue
        other, maps = finer
        step = k // other
        batch, rows, columns, n = maps.shape
        maps.view(batch, rows // step, step, columns // step, step, n).add_(level[:, :, None, :, None])
    return tuple(left)


def _check_distributions(sums: Sequence[Float[Tensor, "B _"]]) -> None:
    """Raise AttentionError where a row of any level does not sum to one; NaN and infinity never do."""
    [worst] = download(torch.cat(list(sums), dim=1).sub_(1).abs_().amax(1))
    bad = np.flatnonzero(~(worst <= SUM_TOLERANCE)).tolist()
    if bad:
        raise AttentionError(
            f"attention rows must sum to 1 within {SUM_TOLERANCE}: image {bad[0]} is off by"
            f" {worst[bad[0]]:.3g} ({len(bad)} of {len(worst)} images)",
            tuple(bad),
        )
