from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffseg.config import ResolvedConfig
from diffseg.method.geometry import PLACES, crop_of, frame, model_size, output_size, to_model

FAST = ResolvedConfig(thresholds=(1.1,), timestep=300, image_size=512, dtype="float32")
PAPER = replace(FAST, mode="paper")


def photo(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((600, 800), (448, 576)),
        ((800, 600), (576, 448)),
        ((720, 1280), (384, 704)),
        ((512, 768), (384, 576)),
        ((40, 40), (512, 512)),
        ((6000, 8000), (448, 576)),
        ((1, 5000), (256, 1024)),
        ((5000, 1), (1024, 256)),
    ],
)
def test_the_model_sees_about_its_own_area_in_the_shape_of_the_image(size, expected):
    assert model_size(size, 512, 64) == expected


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 900))
def test_crops_cover_their_image_at_twice_the_scale(height, width, output):
    planned = frame((height, width), replace(FAST, output_size=output))
    seen, painted = np.zeros(planned.source, bool), np.zeros(planned.output, bool)
    for place in PLACES:
        crop = crop_of(planned, place)
        assert crop.model == planned.model
        for whole, (top, left, h, w) in ((seen, crop.crop), (painted, crop.window)):
            assert (h, w) == tuple(-(-side // 2) for side in whole.shape)
            assert whole[top : top + h, left : left + w].shape == (h, w)
            whole[top : top + h, left : left + w] = True
    assert seen.all()
    assert painted.all()


@given(
    st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([256, 512, 768, 1024]), st.sampled_from([14, 16, 64])
)
def test_every_size_becomes_multiples_of_the_unit_near_the_area_asked_for(height, width, image_size, unit):
    h, w = model_size((height, width), image_size, unit)
    assert h % unit == w % unit == 0
    assert 0.5 * image_size**2 < h * w <= 2 * image_size**2
    assert 1 / 4.5 < w / h < 4.5


@pytest.mark.parametrize(
    ("size", "config", "expected"),
    [
        ((6000, 8000), FAST, (768, 1024)),
        ((300, 400), FAST, (300, 400)),
        ((1, 5000), FAST, (1, 1024)),
        ((6000, 8000), replace(FAST, output_size="source"), (6000, 8000)),
        ((100, 50), replace(FAST, output_size=10), (10, 5)),
    ],
)
def test_a_label_map_keeps_the_shape_of_its_image_and_never_exceeds_it(size, config, expected):
    assert output_size(size, config) == expected


def test_paper_mode_sees_the_centre_square_and_its_window_lies_in_the_label_map():
    planned = frame((400, 601), PAPER)
    assert planned.crop == (0, 100, 400, 400)
    assert planned.model == (512, 512)
    assert planned.window == (0, 100, 400, 400)
    scaled = frame((2000, 4000), PAPER)
    assert (scaled.output, scaled.window) == ((512, 1024), (0, 256, 512, 512))


def test_fast_mode_sees_the_whole_image():
    planned = frame((400, 601), FAST)
    assert (planned.crop, planned.window) == ((0, 0, 400, 601), (0, 0, 400, 601))


@pytest.mark.parametrize("size", [(700, 600), (512, 512), (37, 90), (1, 7), (1536, 2000)])
def test_paper_mode_resizes_as_torch_does_with_half_pixel_centres_and_no_antialias(size):
    image = photo(*size)
    planned = frame(size, PAPER)
    top, left, height, width = planned.crop
    crop = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None].double()

    expected = torch.nn.functional.interpolate(crop, (512, 512), mode="bilinear", align_corners=False, antialias=False)

    assert (to_model(image, planned) - (expected[0] / 127.5 - 1)).abs().max() < 2e-6


def test_fast_mode_averages_over_what_a_model_pixel_covers():
    stripes = np.zeros((2048, 2048, 3), np.uint8)
    stripes[:, ::2] = 254
    inner = to_model(stripes, frame((2048, 2048), FAST))[..., 1:-1]
    assert (inner - (127 / 127.5 - 1)).abs().max() < 0.01
    assert to_model(stripes, frame((2048, 2048), PAPER)).std() < 0.01  # half-way between two columns


@pytest.mark.parametrize("config", [FAST, PAPER])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2), (6000, 8000)])
def test_any_size_fills_the_input_within_its_range(size, config):
    planned = frame(size, config)
    pixels = to_model(np.full((*size, 3), 255, np.uint8), planned)
    assert pixels.shape == (3, *planned.model)
    assert torch.equal(pixels, torch.ones_like(pixels))


def test_an_image_of_the_model_s_own_size_is_not_touched():
    image = photo(512, 512)
    expected = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    for config in (FAST, PAPER):
        assert torch.equal(to_model(image, frame((512, 512), config)), expected)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_another_image_than_was_planned_is_refused_with_both_named(image):
    with pytest.raises(ValueError, match=r"expected a uint8 image \(8, 8, 3\), got"):
        to_model(image, frame((8, 8), FAST))


def test_no_pixels_are_refused():
    with pytest.raises(ValueError, match="at least one pixel"):
        frame((0, 5), FAST)
