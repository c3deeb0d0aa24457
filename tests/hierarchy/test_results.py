"""Labels of images by their tree: what readers cut anew is what was labelled, whatever the batch, size and settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffseg import AttentionError, DiffSeg, SegmentConfig, segment_attention
from diffseg.config import ResolvedConfig
from diffseg.cut import segmentation
from diffseg.evaluation.partition import overlaps
from diffseg.hierarchy.leaves import Leaves
from diffseg.hierarchy.linkage import Linkage
from diffseg.models.attention import AttentionMaps
from diffseg.prior import prior
from tests.support import synthetic
from tests.support.trees import tree_of

GRID = (16, 16)
TREE = ResolvedConfig(
    thresholds=(1.0,), timestep=0, image_size=256, dtype="float32", unit=16, tree=True, cut=0.5, vectors=True, leaves=20
)


class Model:
    """A model whose images attend as generated regions do, each in pieces; the mean of an image decides which."""

    device = torch.device("cpu")

    def __init__(self, config: ResolvedConfig = TREE) -> None:
        self.config = config

    def attend(self, pixels: torch.Tensor, *, features: bool = False) -> AttentionMaps:
        grid = pixels.shape[2] // 16, pixels.shape[3] // 16
        seeds = [int(image.mean() * 1000) % 97 for image in pixels]
        images = [synthetic.attention(synthetic.blobs(grid, 9, seed) % 4, (1,), seed) for seed in seeds]
        levels = tuple(torch.from_numpy(np.stack(level)) for level in zip(*images, strict=True))
        vectors = torch.stack([torch.from_numpy(image[0] @ image[0]) for image in images]) if features else None
        return AttentionMaps(levels, grid, vectors, grid if features else None)

    def batch_size(self) -> int:
        return 4


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(sizes)]


CROPS = replace(TREE, crop_layers=1, min_area=0.0)


@pytest.mark.parametrize(
    "config", [TREE, replace(TREE, min_area=0.02), replace(TREE, cut=0.0), replace(TREE, cut=9.0), CROPS]
)
def test_a_cut_of_the_stored_tree_gives_the_labels_again(config):
    for found in DiffSeg(Model(config)).segment(images((96, 128), (128, 96), (64, 64))):
        assert found.tree is not None
        assert found.leaf_map is not None
        again = segmentation(found.leaf_map, found.tree, found.tree.at_height(config.cut or 0.0))
        assert np.array_equal(again.label_map, found.label_map)
        assert (again.segments, again.quality) == (found.segments, found.quality)
        assert found.vectors is not None
        assert len(found.vectors.values) == len(found.tree.leaves) == found.leaf_map.max() + 1


@pytest.mark.parametrize("config", [TREE, CROPS])
def test_results_are_the_same_whatever_the_batch(config):
    given = images((96, 128), (96, 128), (128, 96), (96, 128))
    together = DiffSeg(Model(config)).segment(given)
    for image, one in zip(given, together, strict=True):
        [alone] = DiffSeg(Model(config)).segment([image])
        assert np.array_equal(alone.label_map, one.label_map)
        assert np.array_equal(alone.leaf_map, one.leaf_map)  # type: ignore[arg-type]
        for kind in ("leaves", "merges"):
            assert np.array_equal(getattr(alone.tree, kind), getattr(one.tree, kind))
        for kind in ("values", "scales"):
            assert np.array_equal(getattr(alone.vectors, kind), getattr(one.vectors, kind))


@pytest.mark.parametrize("config", [TREE, CROPS])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3, 2), (14, 14)])
def test_strips_and_specks_have_a_tree(size, config):
    [found] = DiffSeg(Model(config)).segment(images(size))
    assert found.label_map.shape[0] * size[1] == found.label_map.shape[1] * size[0] or 1 in size
    assert found.tree is not None
    assert (found.label_map >= 0).all()


def test_connected_regions_are_segments_of_their_own_where_asked_for():
    whole, split = (
        DiffSeg(Model(replace(TREE, cut=1.2, split_components=split))).segment(images((96, 128)))[0]
        for split in (False, True)
    )
    assert len(split.segments) > len(whole.segments)
    assert np.array_equal(split.leaf_map, whole.leaf_map)  # type: ignore[arg-type]
    owners = []
    for each in split.segments:
        inside = split.label_map == each.id
        [of] = np.unique(whole.label_map[inside]).tolist()
        assert each.area == inside.sum()
        owners.append(of)
    assert whole.tree is not None
    nodes = whole.tree.features()[whole.tree.nodes_of(whole.tree.at_height(1.2))][owners]  # of shapes of their own
    scores = prior(nodes, *(np.array([getattr(each, of) for each in split.segments]) for of in ("area", "box")))
    assert [each.score for each in split.segments] == scores.tolist()


def test_a_leaf_without_pixels_leaves_its_tree_and_no_cut_changes():
    merges = Linkage(torch.tensor([[0, 0, 0, 2, 1]]), torch.tensor([[torch.inf, 0.8, 0.5, 0.2, 0.1]]))
    features = torch.arange(36).view(1, 9, 4)
    leaves = Leaves(torch.zeros(1, 1, dtype=torch.long), merges, features)
    whole, part = tree_of(leaves, range(5)), tree_of(leaves, [0, 3, 4])
    assert part.merges["height"].tolist() == whole.merges["height"][[2, 3]].tolist()
    assert part.merges["margin"].tolist() == [28, 32]
    assert part.leaves["margin"].tolist() == [0, 12, 16]
    for height in (0.0, 0.1, 0.3, 0.6, 0.9):
        kept = whole.at_height(height)[[0, 3, 4]]
        assert len(set(zip(kept.tolist(), part.at_height(height).tolist(), strict=True))) == len(set(kept.tolist()))


def test_images_without_attention_are_named_and_a_model_without_features_is_refused():
    class Broken(Model):
        def attend(self, pixels, *, features=False):
            maps = super().attend(pixels, features=features)
            maps.levels[0][1] = torch.nan
            return maps

    with pytest.raises(AttentionError) as raised:
        DiffSeg(Broken()).segment(images((64, 64), (64, 64), (64, 64)))
    assert raised.value.images == (1,)

    class Featureless(Model):
        def attend(self, pixels, *, features=False):
            return super().attend(pixels)

    with pytest.raises(ValueError, match="--vectors"):
        DiffSeg(Featureless()).segment(images((64, 64)))


def test_attention_alone_is_cut_where_a_tree_is_asked_for():
    regions = synthetic.blobs(GRID, 4, 5)
    maps = [torch.from_numpy(level) for level in synthetic.attention(regions, (1, 2), 5)]
    greedy, cut = (segment_attention(maps, asked, GRID) for asked in (SegmentConfig(), SegmentConfig(cut=0.8)))
    assert torch.equal(greedy, segment_attention(maps, SegmentConfig(tree=False), GRID))
    assert not torch.equal(greedy, cut)
    table, _ = overlaps(cut.numpy(), regions)
    assert table.max(axis=0).sum() > 0.9 * regions.size
    batch = segment_attention([level.expand(2, -1, -1) for level in maps], SegmentConfig(tree=True, cut=0.8), GRID)
    assert torch.equal(batch, torch.stack([cut, cut]))
    with pytest.raises(ValueError, match="return_trace"):
        segment_attention(maps, SegmentConfig(tree=True), GRID, return_trace=True)


def test_thresholds_compared_are_merged_greedily():
    [[found]] = DiffSeg(Model()).compare(images((64, 64)), [(0.5, 0.5)])
    assert (found.tree, found.leaf_map, found.vectors) == (None, None, None)
