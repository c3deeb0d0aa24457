"""Trees and vectors of an image as bytes, and back: LEAF records then MERGE records, little endian, as they lie in
memory; for each leaf 64 int8 then a float16.
"""

import numpy as np

from diffseg.tree import LEAF, MERGE, Tree
from diffseg.types import Vectors

VECTOR = np.dtype([("values", "i1", 64), ("scale", "<f2")])  # 66 bytes a leaf


def encode_tree(tree: Tree) -> bytes:
    """20 bytes a leaf, less 14."""
    return tree.leaves.tobytes() + tree.merges.tobytes()


def decode_tree(data: bytes) -> Tree:
    """Raises ValueError for bytes that are no tree."""
    leaves, odd = divmod(len(data) + MERGE.itemsize, LEAF.itemsize + MERGE.itemsize)
    if odd:
        raise ValueError(f"{len(data)} bytes are no tree")
    split = leaves * LEAF.itemsize
    return Tree(np.frombuffer(data[:split], LEAF), np.frombuffer(data[split:], MERGE))


def encode_vectors(vectors: Vectors) -> bytes:
    """66 bytes a leaf."""
    packed = np.empty(len(vectors.scales), VECTOR)
    packed["values"], packed["scale"] = vectors.values, vectors.scales
    return packed.tobytes()


def decode_vectors(data: bytes) -> Vectors:
    """Raises ValueError for bytes that are no vectors."""
    packed = np.frombuffer(data, VECTOR)
    if not np.isfinite(packed["scale"]).all():
        raise ValueError("vectors that are no numbers")
    return Vectors(packed["values"], packed["scale"])
