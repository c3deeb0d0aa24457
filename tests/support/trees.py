"""Trees over leaves of any picture, made by seed."""

from collections.abc import Sequence

import numpy as np

from diffseg.hierarchy.leaves import Leaves
from diffseg.hierarchy.results import restricted
from diffseg.tree import FEATURES, LEAF, MERGE, Tree
from diffseg.types import Vectors


def a_tree(seed: int, size: tuple[int, int] = (24, 33), leaves: int = 9) -> tuple[np.ndarray, Tree]:
    """A leaf map int32 [H, W] and a tree of its leaves, with features and equal heights among others."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    centres = rng.permutation(size[0] * size[1])[:leaves]
    far = [(rows - at // size[1]) ** 2 + (columns - at % size[1]) ** 2 for at in centres]
    leaf_map = np.argmin(far, axis=0).astype(np.int32)
    made, open_ = np.zeros(leaves - 1, MERGE), list(range(leaves))
    heights = np.sort(rng.choice(np.linspace(0.05, 0.95, leaves), leaves - 1))
    for at in range(leaves - 1):
        made["left"][at], made["right"][at] = (open_.pop(rng.integers(len(open_))) for _ in "ab")
        made["height"][at] = heights[at]
        open_.append(leaves + at)
    own = np.zeros(leaves, LEAF)
    for name in FEATURES:
        own[name], made[name] = rng.integers(0, 256, leaves), rng.integers(0, 256, leaves - 1)
    return leaf_map, Tree(own, made)


def a_vector_each(seed: int, leaves: int) -> Vectors:
    """Vectors of leaves, at random."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (leaves, 64)).astype(np.int8)
    return Vectors(values, rng.random(leaves).astype(np.float16))


def tree_of(leaves: Leaves, kept: Sequence[int]) -> Tree:
    """The tree of the only image of a batch, of some of its leaves."""
    merges = leaves.merges
    into, height, features = (part[0].numpy() for part in (merges.into, merges.height, leaves.features.byte()))
    return restricted(into, height, features, np.array(kept))
