"""Small objects: what crops of an image at twice the scale show in a few cells becomes leaves of the image's tree.

Every crop is clustered by itself. Of its tree the small nodes that stay alone longest are objects; each is looked for
only where no other crop's centre is nearer, so that no crop's border cuts it and none is found twice.

Letters: B images, N cells h x w of a crop, L leaves, n nodes, J objects of a crop, K of all crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffseg.config import OBJECTS
from diffseg.hierarchy.leaves import Leaves, members, roots
from diffseg.hierarchy.linkage import FAR, Linkage
from diffseg.labels.assign import enlarge
from diffseg.method.geometry import PLACES, Place, window_of
from diffseg.types import Bool, Float, Int

MOST = OBJECTS // len(PLACES)  # objects of a crop
LARGEST = 32  # cells of a crop: eight of the image's own, which show what is larger themselves
LEAST = 0.1  # nats from the merge that makes an object to the one that ends it
NEAREST = ((0.0, 0.75), (0.25, 0.75), (0.25, 1.0))  # share of a crop's side where its centre is the nearest, by place


@dataclass(frozen=True)
class Objects:
    """The objects of one crop of each image.

    cells: the object of each cell, -1: none. height: in nats, of the merge that ends each object; FAR where there are
    fewer. features: LEAF of each.
    """

    place: Place
    cells: Int[Tensor, "B h w"]
    height: Float[Tensor, "B J"]
    features: Int[Tensor, "B J 4"]


def objects_of(leaves: Leaves, grid: tuple[int, int], place: Place) -> Objects:
    """The objects among the nodes of a crop's tree: of those that hold one another the one that is alone longest."""
    inside = members(leaves.merges)
    images, nodes, count = inside.shape
    made = leaves.merges.height.sort(dim=-1).values[:, : count - 1]
    height = torch.cat([made.new_zeros(images, count), made], 1)
    first = inside.int().argmax(-1)
    holds = inside.gather(2, first[:, None].expand(-1, nodes, -1))  # [b, j, i]: node j holds node i or lies in it
    index = torch.arange(nodes, device=height.device)
    above = holds & (index[:, None] > index)
    end = height.gather(1, above.int().argmax(1))
    alone = end - height
    small = _is_small(leaves.cells, inside, grid, place) & above.any(1) & (alone >= LEAST)
    alone = alone.where(small, 0.0)
    longest = alone[:, :, None].where(holds | holds.mT, 0.0).amax(1)
    best, node = alone.where(alone >= longest, 0.0).topk(min(MOST, nodes))
    held = inside.gather(1, node[..., None].expand(-1, -1, count)) & (best > 0)[..., None]
    number = held.int().argmax(1).where(held.any(1), -1)
    features = leaves.features.gather(1, node[..., None].expand(-1, -1, leaves.features.shape[-1]))
    cells = number.gather(1, leaves.cells).unflatten(-1, grid)
    return Objects(place, cells, end.gather(1, node).where(best > 0, FAR), features)


def _is_small(
    cells: Int[Tensor, "B N"], inside: Bool[Tensor, "B n L"], grid: tuple[int, int], place: Place
) -> Bool[Tensor, "B n"]:
    """Nodes of few cells whose mean lies where this crop's centre is the nearest."""
    h, w = grid
    index = torch.arange(h * w, device=cells.device)
    placed = torch.stack([torch.ones_like(index), index // w, index % w], -1).float()
    of_leaf = placed.new_zeros(len(cells), inside.shape[2], 3)
    of_leaf.scatter_add_(1, cells[..., None].expand(-1, -1, 3), placed.expand(len(cells), -1, -1))
    area, *sums = (inside.float() @ of_leaf).unbind(-1)
    small = (area > 0) & (area <= LARGEST)
    for total, side, at in zip(sums, grid, place, strict=True):
        low, high = NEAREST[at]
        centre = (total / area + 0.5) / side
        small = small & (centre >= low) & (centre < high)
    return small


def carve(
    label_maps: Sequence[Int[Tensor, "_ _"]], leaves: Leaves, found: Sequence[Objects]
) -> tuple[list[Int[Tensor, "_ _"]], Leaves]:
    """Painted leaves with the objects as further ones, and their tree.

    An object is joined, at the height at which its crop's tree ends it, to what then holds the leaf that it was carved
    out of for the most part.
    """
    index = torch.arange(leaves.merges.into.shape[1], device=leaves.cells.device)
    count, most = len(index), found[0].height.shape[1]
    painted, owners = [], []
    for image, base in enumerate(label_maps):
        carved = base.clone()
        for number, each in enumerate(found):
            top, left, height, width = window_of((base.shape[0], base.shape[1]), each.place)
            part = carved[top : top + height, left : left + width]
            own = enlarge(each.cells[image], (height, width))
            part.copy_((own + (count + number * most)).where(own >= 0, part))
        painted.append(carved)
        owners.append(_mostly(carved - count, base, len(found) * most, count))
    heights = torch.cat([each.height for each in found], 1)
    into, ends = leaves.merges.into[:, None], leaves.merges.height[:, None]
    holder = roots(into.where(ends <= heights[..., None], index)).gather(2, torch.stack(owners)[..., None])[..., 0]
    merges = Linkage(torch.cat([leaves.merges.into, holder], 1), torch.cat([leaves.merges.height, heights], 1))
    own, others = leaves.features[:, :count], leaves.features[:, count:]
    features = torch.cat([own, *(each.features for each in found), others], 1)
    return painted, replace(leaves, merges=merges, features=features)


def _mostly(objects: Int[Tensor, "H W"], base: Int[Tensor, "H W"], count: int, leaves: int) -> Int[Tensor, " K"]:
    """The leaf that most of each object's pixels had; objects below 0 are none."""
    pair = (objects * leaves + base).where(objects >= 0, count * leaves).flatten().long()
    pixels = torch.zeros(count * leaves + 1, dtype=torch.int32, device=base.device)
    pixels.scatter_add_(0, pair, torch.ones_like(pair, dtype=torch.int32))
    return pixels[:-1].view(count, leaves).argmax(1)
