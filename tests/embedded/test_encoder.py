import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from diffseg.models.unet.loading import new_part
from infra.embedded.encoder import AUTOENCODER, KNEES, LATENTS, MID_X, SLOPE, YCC, Y, set_by_hand
from infra.embedded.trainer import as_pixels
from infra.scenes.scene import draw_scene


@pytest.fixture(scope="module")
def pictures():
    return torch.stack([as_pixels(draw_scene(np.random.default_rng([3, i]), (64, 64))) for i in range(8)])


@pytest.fixture(scope="module")
def autoencoder(pictures):
    made = new_part({"_class_name": "AutoencoderKL", **AUTOENCODER})
    set_by_hand(made, pictures)
    return made


@torch.no_grad()
def encode(autoencoder, pictures):
    return autoencoder.encode(pictures).latent_dist.mean


def affine_residual(values, expected):
    """What is left of `expected` after the best straight line through `values`, as a share of its spread."""
    fit = np.polyfit(values.flatten().numpy(), expected.flatten().numpy(), 1)
    return np.abs(np.polyval(fit, values.flatten().numpy()) - expected.flatten().numpy()).max() / expected.std().item()


def test_the_first_latents_are_the_mean_colours_of_blocks(autoencoder, pictures):
    latents = encode(autoencoder, pictures)
    means = avg_pool2d(torch.einsum("kc,bchw->bkhw", YCC, pictures), 8)
    for channel in range(3):
        assert affine_residual(latents[:, channel], means[:, channel]) < 0.01


def test_a_texture_latent_is_the_compressed_mean_gradient(autoencoder, pictures):
    half = avg_pool2d(torch.einsum("kc,bchw->bkhw", YCC, pictures)[:, Y : Y + 1], 2)
    across = (pad(half, (1, 1, 0, 0))[..., 2:] - pad(half, (1, 1, 0, 0))[..., :-2]).abs() / 2
    energy = avg_pool2d(across, 4)
    bent = energy - (1 - SLOPE) * (energy - KNEES[MID_X]).clamp_min(0)
    found = encode(autoencoder, pictures)[:, LATENTS.index(MID_X)]
    assert affine_residual(found, bent[:, 0]) < 0.25


def test_scaled_latents_have_zero_mean_and_unit_variance(autoencoder, pictures):
    latents = encode(autoencoder, pictures) * AUTOENCODER["scaling_factor"]
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_the_decoder_paints_a_plain_picture_back(autoencoder):
    plain = torch.tensor([0.5, -0.3, 0.1])[None, :, None, None].expand(1, 3, 64, 64)
    with torch.no_grad():
        painted = autoencoder.decode(encode(autoencoder, plain)).sample
    assert (painted - plain)[..., 16:-16, 16:-16].abs().max() < 0.01
