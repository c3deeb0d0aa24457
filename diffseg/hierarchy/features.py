"""What is known of each node of a tree beside its place: how far its cells attend to it more than to any leaf outside.

Letters: B images, L leaves, n nodes, M cells h x w.
"""

import torch
from torch import Tensor

from diffseg.tree import WHOLE
from diffseg.types import Bool, Float, Int

SURE, POSSIBLE = (
    1.25,
    0.8,
)  # own attention as a multiple of the strongest other: a stable node has the same cells at both
TOGETHER = {"cpu": 1, "cuda": 16}  # leaves that all nodes are held against at a time
LOW = 0.1  # the quantile of margins that `low_margin` is


def node_features(
    maps: Float[Tensor, "B L M"],
    size: Float[Tensor, "B L"],
    leaf: Int[Tensor, "B M"],
    members: Bool[Tensor, "B n L"],
    grid: tuple[int, int],
) -> Int[Tensor, "B n 4"]:
    """Margin, low margin, border margin and stability of every node, in the order of `tree.LEAF`, as shares of 255.

    The margin of a cell is 1 - other / own, at least 0: own of the node's mean map, other of the strongest leaf
    outside. Low is the tenth percentile of margins, border their mean over cells beside another node's; all are 1 for
    the root.

    maps, size: of leaves. leaf: of each cell. members: the leaves of each node.
    """
    weight = members * size[:, None]
    own = (weight / weight.sum(-1, keepdim=True)) @ maps
    other = torch.zeros_like(own)
    together = TOGETHER[maps.device.type]
    for own_maps, outside in zip(maps.split(together, 1), (~members).split(together, 2), strict=True):
        torch.maximum(other, own_maps[:, None].where(outside[..., None], 0.0).amax(2), out=other)
    inside = members.gather(2, leaf[:, None].expand(-1, members.shape[1], -1))
    margin = (1 - other / own).clamp_(min=0)
    count = inside.sum(-1)
    border = inside & ~_surrounded(inside, grid)
    borders = border.sum(-1)
    mean = (margin * inside).sum(-1) / count
    ranked = margin.where(inside, torch.inf).sort(-1).values
    low = ranked.gather(2, (LOW * (count - 1)).long()[..., None])[..., 0]
    at_border = ((margin * border).sum(-1) / borders.clamp(min=1)).where(borders > 0, mean)
    sure, possible = ((own > other * share).sum(-1) for share in (SURE, POSSIBLE))
    stable = sure / possible.clamp(min=1)
    features = torch.stack([mean, low, at_border, stable], dim=-1)
    return (features * WHOLE).round().clamp(0, WHOLE).int()


def _surrounded(inside: Bool[Tensor, "B n M"], grid: tuple[int, int]) -> Bool[Tensor, "B n M"]:
    """Cells whose four neighbours belong to the same node; beyond the image everything does."""
    padded = torch.nn.functional.pad(inside.unflatten(-1, grid), (1, 1, 1, 1), value=True)
    centre = slice(1, -1)
    around = padded[..., 2:, centre] & padded[..., :-2, centre] & padded[..., centre, 2:] & padded[..., centre, :-2]
    return around.flatten(-2)
