"""What is known of each node of a tree by its border: how much the picture changes there, and how ragged it is.

A border is made of pairs of pixels, side by side or one above the other, of which one belongs to the node.
Letters: B images, T pixels of all images, R runs and E pairs of runs (see labels/rle.py), L leaves, n nodes.
"""

import math
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from diffseg.labels.rle import RunLengths, Segments, adjacent_runs
from diffseg.tree import LEAF, MERGE, WHOLE, Tree
from diffseg.types import Int, UInt8


def border_tables(
    rle: RunLengths, leaves: Segments, colours: UInt8[Tensor, "3 T"] | None
) -> tuple[Int[Tensor, "B L L"], Int[Tensor, "B L L"]]:
    """Pairs of pixels between each two leaves of an image, and the sum of all channels' differences; each pair is once.

    colours: None: without pictures nothing differs.
    """
    pairs, count = adjacent_runs(rle), leaves.most
    number = (leaves.of_run - leaves.first[rle.image]).where(leaves.of_run >= 0, -1)
    one, other = number[pairs.first], number[pairs.second]
    real = (one != other) & (torch.minimum(one, other) >= 0)
    key = ((rle.image.repeat(3) * count + one) * count + other).where(real, 0)
    shape = len(rle.sizes), count, count
    length = key.new_zeros(math.prod(shape)).scatter_add_(0, key, pairs.border.where(real, 0))
    difference = torch.zeros_like(length)
    if colours is not None:
        shades, runs = colours.short(), len(rle.start)
        beside = (shades[:, rle.start] - shades[:, rle.start - 1]).abs().sum(0)
        below = _steps_down(shades, rle.sizes).cumsum(0)  # of all pixels up to each: the sum along a border is one step
        above = below[pairs.begin[runs:] + pairs.border[runs:] - 1] - below[pairs.begin[runs:] - 1]
        difference.scatter_add_(0, key, torch.cat([beside, above]).where(real, 0))
    return length.view(shape), difference.view(shape)


def _steps_down(shades: Int[Tensor, "3 T"], sizes: tuple[tuple[int, int], ...]) -> Int[Tensor, " T"]:
    """How far each pixel is from the one above it, 0 in the first row of an image."""
    found, first = torch.zeros_like(shades[0]), 0
    for (height, width), group in groupby(sizes):
        last = first + len(list(group)) * height * width
        rows, own = shades[:, first:last].view(3, -1, height, width), found[first:last].view(-1, height, width)
        torch.sum((rows[:, :, 1:] - rows[:, :, :-1]).abs_(), 0, dtype=own.dtype, out=own[:, 1:])
        first = last
    return found


def with_borders(
    tree: Tree, areas: Int[np.ndarray, " L"], length: Int[np.ndarray, "L L"], difference: Int[np.ndarray, "L L"]
) -> Tree:
    """The tree with contrast and compactness of all nodes.

    Contrast is the square root of the mean difference of colours along the border (of all channels, as a share of the
    largest); 0 without one. Compactness is the square root of 4 pi area over the number of its pairs, at most 1.

    areas: of the leaves, in pixels. length, difference: see `border_tables`.
    """
    count = len(tree.leaves)
    members = np.eye(2 * count - 1, count, dtype=bool)
    sides = zip(tree.merges["left"].tolist(), tree.merges["right"].tolist(), strict=True)
    for made, (left, right) in enumerate(sides, start=count):
        members[made] = members[left] | members[right]
    inside, outside = members.astype(float), ~members
    pairs, apart = (((inside @ (each + each.T)) * outside).sum(axis=1) for each in (length, difference / 3))
    contrast = np.sqrt(apart / (np.maximum(pairs, 1) * 255))
    compactness = np.minimum(1, np.sqrt(4 * math.pi * (inside @ areas)) / np.maximum(pairs, 1))
    leaves, merges = tree.leaves.astype(LEAF), tree.merges.astype(MERGE)
    for name, share in (("contrast", contrast), ("compactness", compactness)):
        leaves[name], merges[name] = np.split(np.round(share * WHOLE), [count])
    return Tree(leaves, merges)
