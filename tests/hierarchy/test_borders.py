"""What borders tell of nodes, against a count pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from diffseg.hierarchy.borders import border_tables, with_borders
from diffseg.labels.edges import planes
from diffseg.labels.rle import rle_encode, segments_of
from diffseg.tree import FEATURES
from diffseg.types import IGNORE
from tests.support.trees import a_tree


def counted(leaf_map, picture, leaves):
    """Contrast and compactness of the node that has these leaves, before they are stored."""
    inside = np.isin(leaf_map, list(leaves))
    pairs = []
    for y in range(leaf_map.shape[0]):
        for x in range(leaf_map.shape[1]):
            for v, u in ((y, x + 1), (y + 1, x)):
                there = v < leaf_map.shape[0] and u < leaf_map.shape[1]
                if there and inside[y, x] != inside[v, u] and IGNORE not in (leaf_map[y, x], leaf_map[v, u]):
                    pairs.append(np.abs(picture[y, x].astype(float) - picture[v, u]).mean())
    if not pairs:
        return 0.0, 1.0
    return math.sqrt(np.mean(pairs) / 255), min(1.0, math.sqrt(4 * math.pi * inside.sum()) / len(pairs))


def bordered(leaf_map, tree, picture):
    rle = rle_encode([torch.from_numpy(leaf_map)])
    found = segments_of(rle, rle.label, len(tree.leaves))
    tables = border_tables(rle, found, None if picture is None else planes([picture], torch.device("cpu")))
    return with_borders(tree, found.area.numpy(), *(table[0].numpy() for table in tables))


@pytest.mark.parametrize("shape", [(17, 23), (16, 9), (60, 1), (1, 60)])
@pytest.mark.parametrize("seed", range(2))
def test_contrast_and_compactness_are_those_of_a_count_pixel_by_pixel(seed, shape):
    leaf_map, tree = a_tree(seed, shape, leaves=7)
    leaf_map[:2, :3] = IGNORE
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    found = bordered(leaf_map, tree, picture)
    members = [{leaf} for leaf in range(7)]
    for merge in tree.merges:
        members.append(members[merge["left"]] | members[merge["right"]])
    for node, stored in zip(members, found.features(), strict=True):
        contrast, compactness = counted(leaf_map, picture, node)
        assert stored["contrast"] == pytest.approx(255 * contrast, abs=0.51)
        assert stored["compactness"] == pytest.approx(255 * compactness, abs=0.51)


def test_all_else_of_the_tree_stays_and_without_a_picture_there_is_no_contrast():
    leaf_map, tree = a_tree(3, (17, 23), leaves=7)
    found = bordered(leaf_map, tree, None)
    assert not found.features()["contrast"].any()
    for name in FEATURES[:4]:
        assert (found.features()[name] == tree.features()[name]).all()
    for name in ("left", "right", "height"):
        assert (found.merges[name] == tree.merges[name]).all()


def test_an_image_of_one_leaf_has_no_border():
    leaf_map, tree = a_tree(0, (5, 6), leaves=1)
    [root] = bordered(leaf_map, tree, np.zeros((5, 6, 3), np.uint8)).features()
    assert (root["contrast"], root["compactness"]) == (0, 255)
