"""What is known of each node of a tree by its border: how much the picture changes there, and how ragged it is.

No torch here: leaf maps are on the host by then. Letters: L leaves, n nodes.
"""

import math

import numpy as np

from diffseg.tree import LEAF, MERGE, WHOLE, Tree
from diffseg.types import Float, Int32, UInt8


def with_borders(tree: Tree, leaf_map: Int32[np.ndarray, "H W"], picture: UInt8[np.ndarray, "H W 3"] | None) -> Tree:
    """The tree with contrast and compactness of all nodes.

    A border is made of pairs of pixels, side by side or one above the other, of which one belongs to the node.
    Contrast is the square root of the mean difference of their colours (of all channels, as a share of the largest);
    0 without a picture or a border. Compactness is the square root of 4 pi area over the pairs' number, at most 1.
    """
    count = len(tree.leaves)
    length, difference = _borders(leaf_map, picture, count)
    members = np.eye(2 * count - 1, count, dtype=bool)
    sides = zip(tree.merges["left"].tolist(), tree.merges["right"].tolist(), strict=True)
    for made, (left, right) in enumerate(sides, start=count):
        members[made] = members[left] | members[right]
    inside, outside = members.astype(float), ~members
    pairs, apart = (((inside @ each) * outside).sum(axis=1) for each in (length, difference))
    areas = inside @ np.bincount(leaf_map.ravel() + 1, minlength=count + 1)[1:]
    contrast = np.sqrt(apart / (np.maximum(pairs, 1) * 255))
    compactness = np.minimum(1, np.sqrt(4 * math.pi * areas) / np.maximum(pairs, 1))
    leaves, merges = tree.leaves.astype(LEAF), tree.merges.astype(MERGE)
    for name, share in (("contrast", contrast), ("compactness", compactness)):
        leaves[name], merges[name] = np.split(np.round(share * WHOLE), [count])
    return Tree(leaves, merges)


def _borders(
    leaf_map: Int32[np.ndarray, "H W"], picture: UInt8[np.ndarray, "H W 3"] | None, count: int
) -> tuple[Float[np.ndarray, "L L"], Float[np.ndarray, "L L"]]:
    """Pairs of pixels between each two leaves, and the sum of their differences in colour."""
    length, difference = np.zeros((2, count * count))
    leaf, colour, width = leaf_map.ravel(), None if picture is None else picture.reshape(-1, 3), leaf_map.shape[1]
    for step, across in ((1, True), (width, False)):
        here = np.flatnonzero(leaf[:-step] != leaf[step:])
        here = here[(here + 1) % width > 0] if across else here  # a row's last pixel has none beside it
        here = here[(leaf[here] >= 0) & (leaf[here + step] >= 0)]
        pair = leaf[here] * count + leaf[here + step]
        length += np.bincount(pair, minlength=len(length))
        if colour is not None:
            apart = np.abs(colour[here].astype(np.int16) - colour[here + step]).mean(axis=1)
            difference += np.bincount(pair, apart, len(length))
    pairs, apart = length.reshape(count, count), difference.reshape(count, count)
    return pairs + pairs.T, apart + apart.T
