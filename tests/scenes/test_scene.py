import numpy as np
import pytest
from scipy import ndimage

from infra.scenes.scene import KINDS, MIN_SHARE, benchmark, draw_scene
from infra.scenes.textures import MATERIALS, spectral_noise


def scene_of(seed, size=(96, 128), kind=None):
    return draw_scene(np.random.default_rng(seed), size, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_a_picture_and_contiguous_truth(kind):
    for seed in range(6):
        scene = scene_of(seed, kind=kind)
        assert scene.image.shape == (96, 128, 3)
        assert scene.image.dtype == np.uint8
        assert scene.truth.dtype == np.int32
        areas = np.bincount(scene.truth.ravel())
        assert len(areas) >= 2
        assert areas.min() >= MIN_SHARE * scene.truth.size


def test_a_seed_is_a_scene():
    one, again, other = scene_of(7), scene_of(7), scene_of(8)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.truth, again.truth)
    assert not np.array_equal(one.image, other.image)


def test_an_unknown_kind_is_answered_with_what_is_possible():
    with pytest.raises(ValueError, match=r"one of cells, bands, cuts, objects, bodies, got 'rings'"):
        scene_of(0, kind="rings")


def test_truth_follows_the_picture():
    """Brightness changes more across the borders of the truth than elsewhere, scene by scene in nearly all."""
    sharper = 0
    for seed in range(20):
        scene = scene_of(seed, (128, 128))
        slope = ndimage.gaussian_gradient_magnitude(scene.image.mean(-1).astype(np.float32), 1.0)
        border = ndimage.maximum_filter(scene.truth, 3) != ndimage.minimum_filter(scene.truth, 3)
        sharper += slope[border].mean() > slope[~border].mean()
    assert sharper >= 17


def test_the_benchmark_is_frozen():
    """Figures are reported on these scenes: whoever changes them makes old figures worthless and must say so."""
    counts = [int(scene.truth.max()) + 1 for scene in benchmark(10)]
    assert counts == [3, 3, 3, 4, 3, 8, 3, 5, 3, 5]


def test_the_benchmark_takes_kinds_in_turn():
    [first] = benchmark(1, size=64)
    assert first.image.shape == (64, 64, 3)


@pytest.mark.parametrize("make", [make for make, _ in MATERIALS])
def test_a_material_is_a_field_between_0_and_1(make):
    for seed in range(3):
        field = make(np.random.default_rng(seed), (48, 80))
        assert field.shape == (48, 80)
        assert field.dtype == np.float32
        assert field.min() >= 0
        assert field.max() <= 1


def test_noise_is_coarser_for_a_steeper_spectrum():
    fine, coarse = (spectral_noise(np.random.default_rng(0), (64, 64), slope) for slope in (0.5, 2.0))
    assert abs(coarse.std() - 1) < 0.01
    assert np.abs(np.diff(coarse)).mean() < 0.5 * np.abs(np.diff(fine)).mean()
