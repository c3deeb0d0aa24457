"""Grouping loss: it trains self-attention to stay inside segments.

Input: attention of a few anchor cells at every layer, and soft truth. Output: a scalar per scene.
Letters: B images, A anchors, K segments, h x w cells of the finest grid, n cells of a level.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, relu, scaled_dot_product_attention

from diffseg.types import Float, Int

EPSILON = 1e-8
NEAR, FAR = 0.1, 1.5  # nats of symmetric KL: maps of one segment come closer than NEAR, of two stay apart by FAR


@dataclass
class AnchorAttention:
    """Attention of the anchors, head-averaged, filled in by `AnchorProcessor` during a forward pass.

    grid: cells (h, w) of the finest level. anchors: [B, A] cells of it; at a coarser level their parents count.
    maps: by layer name, [B, A, n].
    """

    grid: tuple[int, int]
    anchors: Int[Tensor, "B A"]
    maps: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, cells: int) -> Int[Tensor, "B A"]:
        """Indices of the anchors, or of their parent cells, in a level of so many cells."""
        height, width = level_grid(self.grid, cells)
        shrink = self.grid[0] // height
        row, column = self.anchors // self.grid[1] // shrink, self.anchors % self.grid[1] // shrink
        return row * width + column


def level_grid(grid: tuple[int, int], cells: int) -> tuple[int, int]:
    """Rows and columns of a level with so many cells, the finest being `grid`."""
    shrink = round((grid[0] * grid[1] / cells) ** 0.5)
    return grid[0] // shrink, grid[1] // shrink


class AnchorProcessor:
    """Self-attention unchanged, plus explicit maps for the anchors alone: a tenth of the memory of all maps."""

    def __init__(self, holder: list[AnchorAttention], name: str) -> None:
        self.holder, self.name = holder, name

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Self-attention over [B, n, channels], as the stock processor computes it."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = scaled_dot_product_attention(query, key, value, scale=attn.scale)
        if self.holder:
            store = self.holder[-1]
            rows = store.rows(hidden_states.shape[1])[:, None, :, None].expand(-1, attn.heads, -1, query.shape[-1])
            scores = query.gather(2, rows).float() @ key.float().transpose(-1, -2) * attn.scale
            store.maps[self.name] = scores.softmax(-1).mean(1)
        output: Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        return output


def draw_anchors(membership: Float[Tensor, "B K h w"], count: int, generator: torch.Generator) -> Int[Tensor, "B A"]:
    """Draw random cells; a segment's share is the square root of its area, so that small segments count more."""
    soft = membership.flatten(2)
    weight = (soft / soft.sum(-1, keepdim=True).clamp_min(1).sqrt()).sum(1)
    return torch.multinomial(weight, count, generator=generator)


def aggregate_anchors(store: AnchorAttention) -> Float[Tensor, "B A N"]:
    """Aggregate the anchors' maps as DiffSeg does: every level on the finest grid, finer ones weighing more."""
    height, width = store.grid
    levels: dict[int, list[Tensor]] = {}
    for attention in store.maps.values():
        levels.setdefault(attention.shape[-1], []).append(attention)
    weights = {cells: cells**0.5 for cells in levels}
    total = store.anchors.new_zeros((), dtype=torch.float32)
    for cells, maps in levels.items():
        level = torch.stack(maps).mean(0).unflatten(-1, level_grid(store.grid, cells))
        full = interpolate(level, (height, width), mode="bilinear", align_corners=False).flatten(2)
        total = total + full / full.sum(-1, keepdim=True) * (weights[cells] / sum(weights.values()))
    return total


def stay_inside(attention: Float[Tensor, "B A n"], same: Float[Tensor, "B A n"]) -> Float[Tensor, "B A"]:
    """Distance of maps from the uniform map over the anchor's segment: half KL divergence, half the log of its mass."""
    target = same / same.sum(-1, keepdim=True).clamp_min(EPSILON)
    divergence = (target * ((target + EPSILON).log() - (attention + EPSILON).log())).sum(-1)
    inside = (attention * same.clamp(0, 1)).sum(-1)
    return 0.5 * divergence - 0.5 * (inside + 1e-4).log()


def keep_apart(maps: Float[Tensor, "B A N"], same: Float[Tensor, "B A A"]) -> Float[Tensor, " B"]:
    """Hinge loss on what merging compares: symmetric KL between anchors, small within a segment, large between two."""
    logs = (maps + EPSILON).log()
    own = (maps * logs).sum(-1)
    cross = maps @ logs.transpose(1, 2)
    distance = (own[:, :, None] + own[:, None, :] - cross - cross.transpose(1, 2)) / 2
    within = (relu(distance - NEAR) * same).sum((1, 2)) / same.sum((1, 2)).clamp_min(1)
    other = 1 - same
    between = (relu(FAR - distance) * other).sum((1, 2)) / other.sum((1, 2)).clamp_min(1)
    return within + between


def grouping_loss(store: AnchorAttention, membership: Float[Tensor, "B K h w"]) -> Float[Tensor, " B"]:
    """Sum the losses of every layer, of the aggregate, and of the distances between aggregated maps."""
    soft = {store.grid: membership}
    own = membership.flatten(2).gather(2, store.anchors[:, None].expand(-1, membership.shape[1], -1))
    total, weights = store.anchors.new_zeros((), dtype=torch.float32), 0.0
    for name, attention in store.maps.items():
        grid = level_grid(store.grid, attention.shape[-1])
        if grid[0] * grid[1] < 64:
            continue  # too coarse to follow a segment
        if grid not in soft:
            soft[grid] = adaptive_avg_pool2d(membership, grid)
        same = torch.einsum("bka,bkn->ban", own, soft[grid].flatten(2))
        weight = 1.0 if name.startswith("up") else 0.4
        total = total + weight * stay_inside(attention, same).mean(-1)
        weights += weight
    aggregate = aggregate_anchors(store)
    same = torch.einsum("bka,bkn->ban", own, membership.flatten(2))
    pairs = torch.einsum("bka,bkc->bac", own, own)
    return total / weights + stay_inside(aggregate, same).mean(-1) + keep_apart(aggregate, pairs)
