"""The baselines on images small enough to see."""

import sys

import numpy as np
import pytest

from diffseg.evaluation.baselines import BASELINES, kmeans

RED_AND_BLUE = np.zeros((40, 60, 3), np.uint8)
RED_AND_BLUE[:, :30, 0] = 220
RED_AND_BLUE[:, 30:, 2] = 220


@pytest.mark.parametrize("name", ["kmeans", "felzenszwalb"])
def test_two_colours_become_two_segments(name):
    label_map = BASELINES[name](RED_AND_BLUE)

    left, right = label_map[:, :25], label_map[:, 35:]  # felzenszwalb blurs first: the seam may be anything
    assert len(np.unique(left)) == len(np.unique(right)) == 1
    assert left[0, 0] != right[0, 0]


def test_one_segment_is_one_segment():
    assert np.array_equal(np.unique(BASELINES["one-segment"](RED_AND_BLUE)), [0])


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_answers_alike_twice_and_in_the_size_of_the_image(name):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)

    first, second = BASELINES[name](image), BASELINES[name](image)

    assert first.shape == (50, 70)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", BASELINES)
def test_a_single_pixel_is_an_image_too(name):
    assert BASELINES[name](np.full((1, 1, 3), 7, np.uint8)).tolist() == [[0]]


def test_kmeans_finds_as_many_segments_as_asked_where_there_are_colours():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)

    assert len(np.unique(kmeans(image, clusters=9))) == 9


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("kmeans", "skimage.color", "scikit-image"),
        ("kmeans", "sklearn.cluster", "scikit-learn"),
        ("felzenszwalb", "skimage.segmentation", "scikit-image"),
    ],
)
def test_an_absent_library_is_one_clear_line(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ValueError, match=f"needs {package}, which is not installed: pip install {package}"):
        BASELINES[name](RED_AND_BLUE)
