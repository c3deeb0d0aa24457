import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffseg.labels.cleanup import clean
from diffseg.labels.rle import parted, per_pixel, rle_encode


def decoded(rle, values):
    return parted(per_pixel(rle, values), rle.sizes)


def cleaned(*rows, pixels):
    labels = torch.tensor([[ord(character) - ord("a") for character in row] for row in rows])
    rle = clean(rle_encode([labels]), pixels / labels.numel())
    return ["".join(chr(ord("a") + value) for value in row) for row in decoded(rle, rle.label)[0].tolist()]


def test_a_hole_is_filled():
    assert cleaned("aaaa", "abba", "aaaa", pixels=3) == ["aaaa"] * 3


def test_a_hole_as_large_as_the_least_area_stays():
    assert cleaned("aaaa", "abba", "aaaa", pixels=2) == ["aaaa", "abba", "aaaa"]


def test_an_island_goes_though_its_segment_stays():
    assert cleaned("bbaaa", "bbaba", "bbaaa", pixels=2) == ["bbaaa"] * 3


def test_the_longest_border_decides():
    assert cleaned("aaaabb", "aacabb", "bbbbbb", "bbbbbb", pixels=2)[1] == "aaaabb"


def test_of_equal_borders_the_larger_neighbour_decides():
    assert cleaned("aaaab", "aacbb", "bbbbb", pixels=2)[1] == "aabbb"


def test_small_neighbours_join_before_they_are_swallowed():
    assert cleaned("abcdaaaa", pixels=3) == ["aaaaaaaa"]


def test_small_regions_that_together_are_large_enough_stay_as_one():
    assert cleaned("aaaa", "bbcc", "dddd", pixels=3)[1] in ("aaaa", "bbbb", "dddd")
    assert cleaned("bbbc", "bbbc", "aaaa", pixels=4) == ["bbbb", "bbbb", "aaaa"]


def test_an_image_without_any_large_region_becomes_its_largest():
    assert cleaned("aabc", pixels=4) == ["aaaa"]


def test_nothing_happens_without_a_least_area():
    assert cleaned("abab", pixels=0) == ["abab"]


def test_the_least_area_follows_the_size_of_each_image():
    small, large = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(20, 20, dtype=torch.int64)
    small[0, 0] = large[5, 5] = 1

    kept, gone = decoded(*(lambda rle: (rle, rle.label))(clean(rle_encode([small, large]), 0.1)))

    assert torch.equal(kept, small)
    assert not gone.any()


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 4), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_no_small_region_is_left_and_large_ones_only_grow(height, width, count, share, seed):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, count, (height, width)))

    rle = clean(rle_encode([labels]), share)
    after = decoded(rle, rle.label)[0]

    areas = [np.bincount(ndimage.label(after == value)[0].ravel())[1:] for value in after.unique()]
    assert min(map(min, areas)) >= share * labels.numel() or sum(map(len, areas)) == 1
    for value in labels.unique():
        parts, found = ndimage.label(labels == value)
        for part in range(1, found + 1):
            inside = torch.from_numpy(parts == part)
            if inside.sum() >= share * labels.numel():
                assert (after[inside] == value).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_cleaned_as_its_images_are(seed):
    maps = [torch.from_numpy(np.random.default_rng([seed, i]).integers(0, 3, (9, 7 + i))) for i in range(3)]

    together = clean(rle_encode(maps), 0.1)

    for labels, painted in zip(maps, decoded(together, together.label), strict=True):
        alone = clean(rle_encode([labels]), 0.1)
        assert torch.equal(painted, decoded(alone, alone.label)[0])
