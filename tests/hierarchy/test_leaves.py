"""Leaves, what is known of their nodes, and their vectors, from truths one can see."""

import numpy as np
import pytest
import torch

from diffseg.hierarchy.features import node_features
from diffseg.hierarchy.leaves import grow
from diffseg.hierarchy.vectors import SIZE, vectors_of
from diffseg.labels.assign import assign, enlarge
from diffseg.labels.rle import rle_encode, segments_of
from diffseg.method.aggregate import Attention, aggregate
from tests.support import synthetic


def attention_of(*regions: np.ndarray, factors: tuple[int, ...] = (1, 2)) -> Attention:
    images = [synthetic.attention(each, factors, seed) for seed, each in enumerate(regions)]
    levels = [torch.from_numpy(np.stack(level)) for level in zip(*images, strict=True)]
    return aggregate(levels, regions[0].shape, floor=1e-12)


def test_two_regions_become_two_leaves_to_the_cell():
    regions = np.zeros((9, 14), int)
    regions[3:, 5:] = 1  # an odd number of rows, and a border within pooled squares
    cells = grow(attention_of(regions, factors=(1,)), 2).cells[0].reshape(regions.shape)
    assert torch.equal(cells, torch.from_numpy(regions))


@pytest.mark.parametrize(("grid", "leaves"), [((1, 1), 1), ((1, 9), 5), ((8, 8), 16), ((16, 16), 20)])
def test_there_are_as_many_leaves_as_asked_for_or_pooled_cells(grid, leaves):
    grown = grow(attention_of(np.zeros(grid, int), factors=(1,)), 20)
    assert grown.merges.into.shape == (1, leaves)
    assert grown.cells.shape == (1, grid[0] * grid[1])
    assert grown.features.shape == (1, 2 * leaves - 1, 4)
    assert (grown.features[:, -1] == 255).all(), "nothing lies outside the root"


def test_leaves_are_the_same_whatever_else_is_in_the_batch():
    pictures = [synthetic.blobs((12, 8), 3 + seed, seed) for seed in range(3)]
    together = grow(attention_of(*pictures), 10)
    images = [synthetic.attention(each, (1, 2), seed) for seed, each in enumerate(pictures)]
    for at, levels in enumerate(images):
        alone = grow(aggregate([torch.from_numpy(level)[None] for level in levels], (12, 8), floor=1e-12), 10)
        assert torch.equal(alone.cells[0], together.cells[at])
        assert torch.equal(alone.features[0], together.features[at])
        assert torch.equal(alone.merges.into[0], together.merges.into[at])


@pytest.mark.parametrize("size", [(9, 14), (90, 140), (77, 1), (300, 431), (5, 900)])
def test_labels_are_enlarged_as_maps_of_ones_are(size):
    cells = torch.from_numpy(synthetic.blobs((9, 14), 12, 1))
    ones = torch.nn.functional.one_hot(cells).permute(2, 0, 1).float()
    found, expected = enlarge(cells, size), assign(ones, size)
    assert found.dtype == expected.dtype == torch.int32
    assert (found == expected).float().mean() > 0.995  # of equal votes either may win


def test_features_of_nodes_are_what_their_definitions_say():
    maps = torch.tensor([[[8.0, 4.0, 1.0, 0.5], [1.0, 3.0, 2.0, 0.5], [0.5, 0.5, 4.0, 9.0]]])
    members = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]]]).bool()
    size, leaf = torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[0, 0, 1, 2]])
    found = node_features(maps, size, leaf, members, (2, 2))[0] / 255

    both = (2 * maps[0, 0] + maps[0, 1]) / 3  # of cells 0, 1 and 2, against the third leaf
    margins = (1 - maps[0, 2] / both).clamp(min=0)
    assert found[0].tolist() == pytest.approx([(7 / 8 + 1 / 4) / 2, 1 / 4, 0.5625, 2 / 2], abs=0.003)
    assert found[1].tolist() == pytest.approx([0, 0, 0, 0 / 1], abs=0.003)
    assert found[3, 0].item() == pytest.approx(margins[:3].mean().item(), abs=0.003)
    assert found[3, 2].item() == pytest.approx(margins[[1, 2]].mean().item(), abs=0.003)
    assert found[3, 3].item() == pytest.approx(2 / 2, abs=0.003)
    assert (found[4] == 1).all()


def test_a_vector_is_the_mean_feature_over_the_pixels_of_its_leaf():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(1, 6, 200))).float()  # of 2 x 3 cells
    label_map = torch.from_numpy(synthetic.blobs((20, 30), 4, 3)).int()
    rle = rle_encode([label_map])
    values, scales = (part.numpy() for part in vectors_of(features, (2, 3), rle, segments_of(rle, rle.label, 4)))
    assert (values.dtype.name, scales.dtype.name) == ("int8", "float16")
    of_pixel = features[0].view(2, 3, -1).repeat_interleave(10, 0).repeat_interleave(10, 1)
    means = torch.stack([of_pixel[label_map == leaf].mean(0) for leaf in range(4)]).numpy()
    vectors = values * scales[:, None].astype(np.float64)
    assert vectors.shape == (4, SIZE)
    assert np.abs(values).max(axis=1).tolist() == [127] * 4
    # an orthonormal projection keeps what lies in its span: the vectors are linear in the means, and no longer
    fitted, *_ = np.linalg.lstsq(features[0].numpy(), _project(features[0]), rcond=None)
    assert vectors == pytest.approx(means @ fitted, abs=0.02)
    assert (np.linalg.norm(vectors, axis=1) <= np.linalg.norm(means, axis=1) + 0.05).all()


def _project(rows: torch.Tensor) -> np.ndarray:
    """The vectors of single cells: leaves of one pixel each."""
    rle = rle_encode([torch.arange(len(rows)).view(1, -1).int()])
    leaves = segments_of(rle, rle.label, len(rows))
    values, scales = (part.numpy() for part in vectors_of(rows[None], (1, len(rows)), rle, leaves))
    return values * scales[:, None].astype(np.float64)


@pytest.mark.parametrize("channels", [3, 64, 1280])
def test_angles_between_features_are_about_those_between_vectors(channels):
    rng = np.random.default_rng(1)
    rows = torch.from_numpy(rng.normal(size=(2, channels)) @ np.diag(1 / np.arange(1, channels + 1))).float() * 30
    one, other = (_project(rows)[at] for at in range(2))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    expected = torch.cosine_similarity(rows[0], rows[1], dim=0).item()
    assert cosine == pytest.approx(expected, abs=0.02 if channels <= SIZE else 0.4)


def test_features_of_nothing_and_broken_ones_give_vectors_of_zeros():
    assert not _project(torch.zeros(3, 80)).any()
    assert not _project(torch.full((3, 80), torch.nan)).any()
