import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffseg.labels.rle import (
    adjacent_runs,
    connected_components,
    parted,
    per_pixel,
    rle_encode,
    segments_of,
    union_find,
)


def decoded(rle, values):
    return parted(per_pixel(rle, values), rle.sizes)


def regions(labels):
    rle = rle_encode([labels])
    return decoded(rle, connected_components(rle.label, adjacent_runs(rle)))[0]


def drawing(*rows):
    return torch.tensor([[ord(character) - ord("a") for character in row] for row in rows])


@st.composite
def label_maps(draw):
    height, width, labels = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    return torch.from_numpy(np.random.default_rng(seed).integers(0, labels, (height, width)))


@given(st.lists(label_maps(), min_size=1, max_size=3))
def test_painting_the_runs_gives_the_labels_back(maps):
    rle = rle_encode(maps)

    for painted, labels in zip(decoded(rle, rle.label), maps, strict=True):
        assert torch.equal(painted, labels)


def test_runs_say_where_they_lie():
    rle = rle_encode([drawing("aab"), drawing("c", "c")])

    assert rle.start.tolist() == [0, 2, 3, 4]
    assert rle.length.tolist() == [2, 1, 1, 1]
    assert list(zip(rle.image.tolist(), rle.row.tolist(), rle.column.tolist(), strict=True)) == [
        (0, 0, 0),
        (0, 0, 2),
        (1, 0, 0),
        (1, 1, 0),
    ]


def test_borders_are_counted_in_pixels():
    rle = rle_encode([drawing("aaab", "aacb")])  # rle: aaa b aa c b

    pairs = adjacent_runs(rle)

    named = [sorted(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    found = [(*pair, pixels) for pair, pixels in zip(named, pairs.border.tolist(), strict=True) if pair[0] < pair[1]]
    assert sorted(found) == [(0, 1, 1), (0, 2, 2), (0, 3, 1), (1, 4, 1), (2, 3, 1), (3, 4, 1)]


def test_corners_do_not_connect():
    assert regions(drawing("ab", "ba")).unique().numel() == 4


def test_a_spiral_is_one_region():
    spiral = drawing("aaaaa", "bbbba", "aaaba", "abbba", "aaaaa")

    assert regions(spiral).unique().numel() == 2


def test_images_of_a_batch_never_touch():
    rle = rle_encode([drawing("aa"), drawing("aa"), drawing("a", "a")])

    assert connected_components(rle.label, adjacent_runs(rle)).tolist() == [0, 1, 2, 2]


@settings(deadline=None)
@given(label_maps())
def test_regions_equal_those_of_scipy(labels):
    ours = regions(labels)

    theirs = np.zeros(labels.shape, dtype=int)
    for value in labels.unique():
        part, _ = ndimage.label(labels == value)
        theirs[part > 0] = part[part > 0] + theirs.max()
    pairs = set(zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    assert len(pairs) == ours.unique().numel() == len(np.unique(theirs))


@pytest.mark.parametrize("count", [2, 1000])
def test_a_long_chain_is_one(count):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))

    assert not union_find(count, order[1:], order[:-1]).any()


def test_segments_are_numbered_image_by_image_with_area_and_box():
    rle = rle_encode([drawing("aac", "acc"), drawing("b", "b")])

    segments = segments_of(rle, rle.label, 6)

    assert segments.image.tolist() == [0, 0, 1]
    assert segments.first.tolist() == [0, 2]
    assert segments.area.tolist() == [3, 3, 2]
    assert segments.box.tolist() == [[0, 0, 2, 2], [1, 0, 2, 2], [0, 0, 1, 2]]


def test_ignored_pixels_belong_to_no_segment():
    rle = rle_encode([torch.tensor([[-1, 5, 5, -1]])])

    segments = segments_of(rle, rle.label, 6)

    assert segments.of_run.tolist() == [-1, 0, -1]
    assert segments.area.tolist() == [2]
    assert segments.box.tolist() == [[1, 0, 2, 1]]
