"""Runs whose segments are of few materials, each with a vector of its own, and truth beside them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg.cut import Cut, segmentation
from diffseg.tree import LEAF, MERGE, Tree
from diffseg.types import Vectors
from pipeline.records import LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.worker.labeling import with_labels
from tests.support.labelled import CUT, SIZE, make_run

KEYS = (tuple(f"a{i}" for i in range(10)), tuple(f"b{i}" for i in range(6)))
MATERIALS = 4
NOISE = 12  # of vectors, whose largest number is 127
NUMBERS = [*range(10), *range(100, 106)]  # of all images


def materials(number: int) -> np.ndarray:
    """The material of each of an image's six cells, two wide and three high; at least two of them."""
    drawn = np.random.default_rng([1, number]).permutation(MATERIALS * 2)[:6]
    return (drawn % MATERIALS).reshape(3, 2)


def truth_of(number: int) -> np.ndarray:
    """Materials of pixels, at half of SIZE."""
    height, width = SIZE[0] // 2, SIZE[1] // 2
    return materials(number).repeat(height // 3, 0).repeat(width // 2, 1)


def _vectors(number: int) -> Vectors:
    prototypes = np.random.default_rng(3).integers(-100, 101, (MATERIALS, 64))
    noise = np.random.default_rng([2, number]).normal(0, NOISE, (6, 64))
    values = (prototypes[materials(number).ravel()] + noise).clip(-127, 127)
    scales = np.random.default_rng([3, number]).uniform(0.01, 0.1, 6)  # lengths tell nothing
    return Vectors(values.round().astype(np.int8), scales.astype(np.float16))


def material_record(key: str, shard: str, index: int, number: int) -> LabelRecord:
    """Six leaves, a cell each; up to 0.1 nats those of one material are merged, at 1 all of them."""
    height, width = SIZE[0] // 2, SIZE[1] // 2
    leaf_map = np.arange(6).reshape(3, 2).repeat(height // 3, 0).repeat(width // 2, 1).astype(np.int32)
    of_leaf, open_, merges = materials(number).ravel(), dict[int, int](), list[tuple[int, int, float]]()
    for leaf, material in enumerate(of_leaf.tolist()):
        if material in open_:
            merges.append((open_[material], leaf, 0.1))
            open_[material] = 5 + len(merges)
        else:
            open_[material] = leaf
    first, *others = open_.values()
    for other in others:
        merges.append((first, other, 1.0))
        first = 5 + len(merges)
    packed = np.zeros(5, MERGE)
    packed["left"], packed["right"], packed["height"] = zip(*merges, strict=True)
    tree = Tree(np.zeros(6, LEAF), packed)
    found = segmentation(leaf_map, tree, CUT.of(tree))
    row = LabelRecord(key, shard, index, "ok", None, SIZE[1], SIZE[0], image_sha256="0" * 64)
    return with_labels(row, replace(found, leaf_map=leaf_map, tree=tree, vectors=_vectors(number)))


def material_run(folder: Path, leave_out: tuple[int, ...] = ()) -> Ledger:
    """A run of 16 images in windows of four."""
    return make_run(folder, KEYS, trees=Cut(height=CUT.height), rows=material_record, leave_out=leave_out)


def write_truth(folder: Path, count: int, scale: int = 2) -> Path:
    """Materials of the first images of the first shard as PNGs of the photos' size, in `folder/truth`."""
    truth = folder / "truth"
    truth.mkdir(exist_ok=True)
    for number in range(count):
        pixels = truth_of(number).repeat(scale, 0).repeat(scale, 1).astype(np.uint8)
        Image.fromarray(pixels).save(truth / f"a{number}.png")
    return truth
