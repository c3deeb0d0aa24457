"""Ridges: a byte a border, equal to a literal computation, and segments that come apart along them at any cut."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffseg import DiffSeg
from diffseg.cut import components
from diffseg.hierarchy.cell_edges import cell_edges
from diffseg.ridges import FAINT, STRONG, ridges_of, split
from tests.hierarchy.test_results import TREE, Model, images
from tests.support.synthetic import blobs
from tests.support.trees import a_tree


def literal_edges(maps, grid, floor):
    """The same edges, cell by cell."""
    h, w = grid
    logs = [[max(p, floor) for p in row] for row in maps.tolist()]

    def apart(a, b):
        pairs = zip(logs[a], logs[b], strict=True)
        return sum((p - q) * (math.log(p) - math.log(q)) for p, q in pairs) / 2

    across = [[apart(y * w + x, y * w + x + 1) for x in range(w - 1)] or [0.0] for y in range(h)]
    down = [[apart(y * w + x, y * w + x + w) for x in range(w)] for y in range(h - 1)] or [[0.0] * w]
    return np.array(across), np.array(down)


def literal_ridges(leaf_map, across, down):
    """The same bytes, from one pair of pixels after the other."""
    pieces, _ = components(leaf_map)
    (height, width), found = leaf_map.shape, defaultdict(list)
    h, w = len(across), len(down[0])
    for y in range(height):
        for x in range(width):
            if x + 1 < width and pieces[y, x] != pieces[y, x + 1]:
                edge = min(max(round((x + 1) * w / width), 1), max(1, w - 1)) - 1
                found[tuple(sorted((pieces[y, x], pieces[y, x + 1])))].append(across[y * h // height][edge])
            if y + 1 < height and pieces[y, x] != pieces[y + 1, x]:
                edge = min(max(round((y + 1) * h / height), 1), max(1, h - 1)) - 1
                found[tuple(sorted((pieces[y, x], pieces[y + 1, x])))].append(down[edge][x * w // width])
    lowest = [sorted(strengths)[int((len(strengths) - 1) * 0.1)] for _, strengths in sorted(found.items())]
    shares = [math.log(max(nats, FAINT) / FAINT) / math.log(STRONG / FAINT) for nats in lowest]
    return [min(255, round(255 * share)) for share in shares]


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (4, 1), (1, 1)])
def test_edges_between_cells_are_the_symmetric_kl_of_their_maps(grid):
    cells = grid[0] * grid[1]
    maps = torch.from_numpy(np.random.default_rng(cells).dirichlet(np.full(cells, 0.1), (2, cells))).float()
    found = cell_edges(maps, grid, 1e-6)
    for image in range(2):
        for own, literal in zip(found, literal_edges(maps[image].double(), grid, 1e-6), strict=True):
            assert own[image].numpy() == pytest.approx(literal, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "grid"), [((24, 33), (6, 8)), ((9, 40), (5, 7)), ((24, 33), (1, 6)), ((7, 5), (9, 9))]
)
def test_a_border_has_the_strength_of_its_lowest_tenth(size, grid):
    leaf_map, _ = a_tree(3, size)
    leaf_map[0, :3] = [1, 2, 1]  # leaves in several pieces
    random = np.random.default_rng(1)
    across = 10 ** random.uniform(-5, 3, (grid[0], max(1, grid[1] - 1)))
    down = 10 ** random.uniform(-5, 3, (max(1, grid[0] - 1), grid[1]))
    found = ridges_of(leaf_map, across, down)
    assert found.dtype == np.uint8
    assert found.tolist() == literal_ridges(leaf_map, across, down)
    assert len(set(found.tolist())) > 4


def touching():
    """Two squares of two leaves each, side by side on a ground, with strong edges between and about them."""
    leaf_map = np.zeros((12, 20), np.int32)
    for number, left in enumerate((2, 6, 10, 14), start=1):
        leaf_map[3:9, left : left + 4] = number
    label_map = np.minimum(leaf_map, 1)
    across, down = np.full((12, 19), 1e-3), np.full((11, 20), 1e-3)
    across[3:9, [1, 9, 17]], down[[2, 8], 2:18] = 1.0, 1.0
    return leaf_map, label_map, across, down


def test_touching_equal_objects_of_one_segment_come_apart_and_objects_stay_whole():
    leaf_map, label_map, across, down = touching()
    parts = split(label_map, leaf_map, ridges_of(leaf_map, across, down))
    assert parts[5, 2] == parts[5, 9] != parts[5, 10] == parts[5, 17]
    assert len(np.unique(parts)) == 3
    assert (components(label_map)[0] < 2).all()  # which components do not do


def test_a_flat_map_comes_apart_nowhere_and_two_segments_are_never_joined():
    leaf_map, label_map, across, down = touching()
    bytes_ = ridges_of(leaf_map, across, down)
    assert split(label_map * 0, leaf_map, np.full_like(bytes_, 7)).tolist() == (label_map * 0).tolist()
    parted = split(leaf_map, leaf_map, bytes_)
    assert len(np.unique(parted)) == 5
    alone = np.zeros((4, 4), np.int32)
    assert split(alone, alone, ridges_of(alone, np.ones((2, 1)), np.ones((1, 2)))).tolist() == alone.tolist()


def test_ridges_of_another_leaf_map_are_refused():
    leaf_map, label_map, across, down = touching()
    with pytest.raises(ValueError, match="ridges are not those of the"):
        split(label_map, leaf_map, ridges_of(leaf_map, across, down)[1:])


@pytest.mark.parametrize("config", [TREE, replace(TREE, crop_layers=1)])
def test_a_model_gives_a_ridge_a_border_whatever_the_batch(config):
    given = images((96, 128), (128, 96), (96, 128))
    with_ridges = DiffSeg(Model(replace(config, ridges=True))).segment(given)
    for image, found, plain in zip(given, with_ridges, DiffSeg(Model(config)).segment(given), strict=True):
        assert plain.ridges is None
        assert np.array_equal(plain.label_map, found.label_map)
        [alone] = DiffSeg(Model(replace(config, ridges=True))).segment([image])
        assert found.ridges is not None
        assert found.leaf_map is not None
        assert np.array_equal(alone.ridges, found.ridges)  # type: ignore[arg-type]
        parts = split(found.label_map, found.leaf_map, found.ridges)
        of_part = [len(np.unique(found.label_map[parts == part])) for part in range(parts.max() + 1)]
        assert set(of_part) == {1}


def test_regions_of_equal_attention_keep_faint_borders():
    regions = blobs((8, 8), 2, 0)
    same = regions.ravel()[:, None] == regions.ravel()
    maps = torch.from_numpy(same / same.sum(1, keepdims=True)).float()[None]
    across, down = cell_edges(maps, (8, 8), 1e-6)
    assert (across[0].numpy() > 0.1).tolist() == (regions[:, 1:] != regions[:, :-1]).tolist()
    assert (down[0].numpy() > 0.1).tolist() == (regions[1:] != regions[:-1]).tolist()
