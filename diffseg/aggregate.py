"""Attention maps of several resolutions become one map for every cell of the finest grid.

In: levels [B, n, n], finest first, rows summing to one. Out: [B, N, N].

Letters: B images, n cells of a level, N = h * w cells of the finest one, k how many times coarser a level is.

The maps come out as densities, N times the probability, so that a flat map is one everywhere. Their logarithms are
then centred on zero, which is what lets distances survive reduced precision; means, ratios and argmax do not notice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffseg.types import AttentionError, Float

SUM_TOLERANCE = 0.02  # half-precision softmax strays by a few thousandths; unnormalised scores by far more


def aggregate(
    levels: Sequence[Float[Tensor, "B _ _"]], grid: tuple[int, int], floor: float = 0.0
) -> Float[Tensor, "B N N"]:
    """Bring every level to the finest grid and average, finer levels weighing more (section 3.2 of the paper).

    Keys are interpolated, then each map is normalised, then queries are repeated: in this order, as published.

    floor: least probability of the result; 0 leaves zeros as they are.

    Raises ValueError where shapes do not fit the grid, AttentionError naming the images whose rows are no
    distributions.
    """
    factors = coarseness(levels, grid)
    weights = [1 / k / sum(1 / other for other in factors) for k in factors]
    finest, *others = levels
    coarser = [
        (k, _on_finest_keys(level, grid, k, weight))
        for k, weight, level in zip(factors[1:], weights[1:], others, strict=True)
    ]
    batch, n, _ = finest.shape
    h, w = grid
    out = torch.empty(batch, n, n, dtype=torch.float32, device=finest.device)
    sums = torch.empty(batch, n, dtype=torch.float32, device=finest.device)
    for y in range(h):  # one row of queries at a time stays in the cache while every level is added
        row = slice(y * w, (y + 1) * w)
        torch.sum(finest[:, row], dim=-1, dtype=torch.float32, out=sums[:, row])
        target = torch.mul(finest[:, row], (n * weights[0] / sums[:, row])[..., None], out=out[:, row])
        for k, level in coarser:
            target.view(batch, w // k, k, n).add_(level[:, y // k, :, None])
        if floor:
            target.clamp_(min=floor * n)
    _refuse_what_is_no_distribution(sums, others)
    return out


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
        if h % k or w % k or (h // k) * (w // k) != n:
            raise ValueError(f"a level of {n} cells is no {h} x {w} grid divided by an integer")
        found.append(k)
    if found[0] != 1 or sorted(found) != found:
        raise ValueError(f"levels come finest first, the finest {h} x {w}; got {[lv.shape[-1] for lv in levels]} cells")
    return found


def _on_finest_keys(
    level: Float[Tensor, "B n n"], grid: tuple[int, int], k: int, weight: float
) -> Float[Tensor, "B hk wk N"]:
    """Maps over the finest keys, each summing to `weight * N`, for the coarse queries they belong to."""
    h, w = grid
    batch, n, _ = level.shape
    keys = interpolate(level.float().view(batch, n, h // k, w // k), size=grid, mode="bilinear", align_corners=False)
    keys = keys.flatten(2)
    keys *= h * w * weight / keys.sum(-1, keepdim=True)
    return keys.view(batch, h // k, w // k, h * w)


def _refuse_what_is_no_distribution(finest: Float[Tensor, "B N"], others: Sequence[Float[Tensor, "B _ _"]]) -> None:
    """AttentionError where a row of any level does not sum to one; NaN and infinity never do."""
    off = torch.stack([(sums - 1).abs().amax(-1) for sums in (finest, *(level.sum(-1).float() for level in others))])
    worst = off.amax(0)
    bad = (~(worst <= SUM_TOLERANCE)).nonzero().flatten().tolist()
    if bad:
        first = worst[bad[0]].item()
        raise AttentionError(
            f"attention rows must sum to 1 within {SUM_TOLERANCE}: image {bad[0]} is off by {first:.3g}"
            f" ({len(bad)} of {len(worst)} images)",
            tuple(bad),
        )
