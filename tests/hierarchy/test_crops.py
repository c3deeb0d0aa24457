"""Small objects of crops, from regions and squares one can see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffseg import AttentionError, DiffSeg, SegmentConfig
from diffseg.config import OBJECTS
from diffseg.hierarchy.crops import LARGEST, MOST, NEAREST, Objects, carve, objects_of
from diffseg.hierarchy.leaves import Leaves, grow
from diffseg.hierarchy.linkage import FAR, Linkage
from diffseg.method.aggregate import aggregate
from diffseg.method.geometry import PLACES
from tests.hierarchy.test_results import CROPS, TREE, Model, images
from tests.support import synthetic
from tests.support.trees import tree_of

GRID = (24, 32)


def shown(*boxes, place=(1, 1)):
    """The objects of a crop whose only regions beside the ground are boxes (top, left, height, width) of cells."""
    regions = np.zeros(GRID, int)
    for number, (top, left, height, width) in enumerate(boxes):
        regions[top : top + height, left : left + width] = number + 1
    levels = [torch.from_numpy(level)[None] for level in synthetic.attention(regions, (1,), 1)]
    return objects_of(grow(aggregate(levels, GRID, floor=1e-12), 20, 1), GRID, place), regions


def test_a_small_region_is_an_object_to_the_cell_and_a_large_one_none():
    found, regions = shown((10, 14, 2, 3), (0, 0, 8, 12))
    assert LARGEST < 8 * 12
    assert np.array_equal(found.cells[0].numpy() == 0, regions == 1)
    heights = found.height[0][found.height[0] < FAR]
    assert heights[0] > 1 > heights[1:].max(), "pieces of the ground, alike but for noise, come after it"
    assert (found.cells[0].numpy()[regions == 2] == -1).mean() > 0.5


@pytest.mark.parametrize("box", [(1, 1, 2, 2), (1, 15, 2, 2), (11, 15, 2, 2), (21, 29, 2, 2), (12, 28, 3, 3)])
def test_an_object_is_that_of_the_crops_whose_centre_is_nearest(box):
    centre = [(start + length / 2) / side for start, length, side in zip(box, box[2:], GRID, strict=False)]
    for place in PLACES:
        low_and_high = [NEAREST[at] for at in place]
        nearest = all(low <= at < high for at, (low, high) in zip(centre, low_and_high, strict=True))
        found, _ = shown(box, place=place)
        assert bool(((found.height > 1) & (found.height < FAR)).any()) == nearest


def test_a_crop_has_no_more_objects_than_an_image_has_room_for():
    boxes = [(top, left, 2, 2) for top in (7, 11, 15) for left in (9, 13, 17, 21)]
    found, _ = shown(*boxes)
    assert len(boxes) > MOST
    assert found.cells.max() + 1 == MOST
    assert MOST * len(PLACES) <= OBJECTS


def test_an_object_joins_what_holds_its_leaf_at_its_height_and_cuts_nest():
    merges = Linkage(torch.tensor([[0, 0, 1]]), torch.tensor([[torch.inf, 2.0, 1.0]]))  # leaf 2 into 1, then 1 into 0
    leaves = Leaves(torch.zeros(1, 1, dtype=torch.long), merges, torch.arange(20).view(1, 5, 4))
    base = torch.tensor([0, 1, 2, 2]).int().repeat_interleave(8).expand(32, 32)  # columns; the object is in leaf 2
    cells = torch.full((1, 8, 8), -1)
    cells[0, 3:5, 6:] = 0
    for height, containers in ((0.5, [2]), (1.5, [1, 2]), (3.0, [0, 1, 2])):
        heights = torch.tensor([[height, FAR]])
        objects = Objects((1, 1), cells, heights, torch.full((1, 2, 4), 99))
        [painted], carved = carve([base], leaves, [objects])
        assert sorted(painted.unique().tolist()) == [0, 1, 2, 3]
        assert (painted[painted != 3] == base[painted != 3]).all()
        assert (painted[15:17, 21:23] == 3).all()
        tree = tree_of(carved, range(4))
        assert tree.leaves["margin"].tolist() == [0, 4, 8, 99]
        before, after = (tree.at_height(height + step) for step in (-1e-3, 1e-3))
        assert (before == before[3]).sum() == 1
        assert np.flatnonzero(after == after[3]).tolist() == [*containers, 3]
        without = tree.at_height(1.2)[:3]
        assert (without[1] == without[2], without[0] == without[1]) == (True, False)
        own = {1.0: 12, 2.0: 16, height: {0.5: 8, 1.5: 12, 3.0: 16}[height]}  # of what holds it, not of the object
        assert dict(zip(tree.merges["height"].tolist(), tree.merges["margin"].tolist(), strict=True)) == own


def test_objects_are_leaves_beside_those_asked_for():
    given = images((96, 128), (128, 96), (192, 128))
    plain, cropped = (DiffSeg(Model(replace(TREE, min_area=0.0, crop_layers=n))).segment(given) for n in (0, 1))
    counts = [[len(each.tree.leaves) for each in found] for found in (plain, cropped)]  # type: ignore[union-attr]
    assert max(counts[0]) <= TREE.leaves < max(counts[1]) <= TREE.leaves + OBJECTS
    for each in cropped:
        assert each.tree is not None
        finer = each.tree.at_height(0.0)
        for height in (0.1, 0.3, 0.5, 1.0, 3.0):
            coarser = each.tree.at_height(height)
            assert len(set(zip(finer.tolist(), coarser.tolist(), strict=True))) == finer.max() + 1
            finer = coarser


def test_an_image_whose_crops_have_no_attention_is_named():
    class Broken(Model):
        def attend(self, pixels, *, features=False):
            maps = super().attend(pixels, features=features)
            if not features:  # a crop
                maps.levels[0][pixels.mean((1, 2, 3)) > 0] = torch.nan
            return maps

    dark, bright = np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 240, np.uint8)
    with pytest.raises(AttentionError) as raised:
        DiffSeg(Broken(CROPS)).segment([dark, bright, dark])
    assert raised.value.images == (1,)


def test_a_small_square_on_plain_ground_is_found_in_crops_alone():
    image = np.full((320, 480, 3), 128, np.uint8)
    square = np.zeros((320, 480), bool)
    square[150:168, 230:248] = True
    image[square] = (250, 240, 120)
    best = []
    for crop_layers in (0, 1):
        [found] = DiffSeg.from_pretrained("tiny", SegmentConfig(crop_layers=crop_layers), device="cpu").segment([image])
        own = [found.label_map == each.id for each in found.segments]
        best.append(max((mask & square).sum() / (mask | square).sum() for mask in own))
    assert best[0] < 0.5 < best[1]
