"""The normalised cut against a literal one, which is slow and of other libraries: numpy, LAPACK's pivoted QR."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.linalg import qr
from scipy.optimize import linear_sum_assignment

from diffseg import DiffSeg
from diffseg.config import SegmentConfig
from diffseg.method.geometry import frame, to_model
from diffseg.method.normalised_cut import MOST, normalised_cut
from diffseg.models.unet.backend import Backend
from diffseg.types import AttentionError
from infra.scenes.scene import draw_scene

REAL = Path(__file__).parents[3] / "shared" / "real" / "dinov2-small"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real weights on this machine")


def literal(features, clusters=None):
    """Similarities to prototypes, as published, in double precision."""
    unit = np.stack([vector / np.linalg.norm(vector) for vector in features.astype(np.float64)])
    similar = unit @ unit.T
    weights = ((similar - similar.min()) / (similar.max() - similar.min())) ** 10
    degree = weights.sum(1)
    values, vectors = np.linalg.eigh(np.eye(len(unit)) - weights / np.sqrt(np.outer(degree, degree)))
    if clusters is None:
        means = {k: values[:k].mean() for k in range(2, min(MOST, len(unit) - 1) + 1)}
        clusters = max(means, key=lambda k: (values[k] - means[k]) / (means[k] + 1e-6))
    vectors = vectors[:, :clusters]
    _, _, pivots = qr(vectors.T, pivoting=True)
    first, _, second = np.linalg.svd(vectors[pivots[:clusters]].T)
    nearest = np.abs(vectors @ (first @ second)).argmax(1)
    prototypes = np.stack([unit[nearest == k].mean(0) for k in range(clusters) if (nearest == k).any()])
    return prototypes @ unit.T


def agreement(one, other):
    """Share of cells with the same label after the best matching of labels."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns].sum() / one.size


@pytest.mark.parametrize(("model", "side"), [("tiny", 256), pytest.param(str(REAL), 280, marks=needs_real)])
def test_labels_of_pictures_are_those_of_the_literal_one(model, side):
    segmenter = DiffSeg.from_pretrained(
        model, SegmentConfig(mode="quality", image_size=side, min_area=0.0, edges=False), device="cpu"
    )
    for seed in range(2):
        image = draw_scene(np.random.default_rng(seed), (120, 160)).image
        pixels = to_model(image, frame(image.shape[:2], segmenter.config))
        maps = segmenter.backend.attend(pixels[None], features=True)
        assert maps.features is not None
        wanted = literal(maps.features[0].numpy())
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(wanted).unflatten(-1, maps.features_grid)[None], image.shape[:2], mode="bilinear"
        )
        [found] = segmenter.segment([image])
        assert len(found.segments) > 1
        assert agreement(found.label_map.ravel(), enlarged[0].argmax(0).numpy().ravel()) >= 0.999


def test_the_noise_of_a_unet_is_that_of_its_training_schedule(tmp_path):
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    backend = Backend.load("tiny", SegmentConfig(mode="quality"), "cpu")
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(42)).expand_as(latents)
    wanted = scheduler.add_noise(latents, noise, torch.tensor([50]))
    torch.testing.assert_close(backend.noised(latents), wanted, atol=1e-5, rtol=0)
    given = draw_scene(np.random.default_rng(0), (64, 64)).image
    pixels = to_model(given, frame((64, 64), backend.config))[None]
    fast = Backend.load("tiny", SegmentConfig(timestep=50), "cpu")
    noisy, clean = (each.attend(pixels, features=True).features for each in (backend, fast))
    assert noisy is not None
    assert clean is not None
    assert not torch.equal(noisy, clean)


def blobs(rng, cells, regions, noise):
    """Features of cells of that many regions."""
    centres = rng.normal(size=(regions, 24))
    return (centres[rng.integers(regions, size=cells)] + noise * rng.normal(size=(cells, 24))).astype(np.float32)


@pytest.mark.parametrize("clusters", [None, 2, 7])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_it_agrees_with_the_literal_one(clusters, noise):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        features = blobs(rng, 180, 3 + seed, noise)
        found, wanted = normalised_cut(torch.from_numpy(features)[None], clusters), literal(features, clusters)
        assert found.counts == (len(wanted),)
        assert agreement(found.maps[0].argmax(0).numpy(), wanted.argmax(0)) >= 0.999


def test_regions_that_differ_are_told_apart_and_counted():
    rng = np.random.default_rng(0)
    centres = np.eye(24, dtype=np.float32)[:5]
    truth = rng.integers(5, size=200)
    found = normalised_cut(torch.from_numpy(centres[truth] + 0.02 * rng.normal(size=(200, 24)))[None], None)
    assert found.counts == (5,)
    assert agreement(found.maps[0].argmax(0).numpy(), truth) == 1.0


def test_images_of_a_batch_do_not_see_each_other():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(np.stack([blobs(rng, 90, regions, 0.2) for regions in (2, 6)]))
    both = normalised_cut(features, None)
    for image in range(2):
        alone = normalised_cut(features[image : image + 1], None)
        assert both.counts[image] == alone.counts[0]
        torch.testing.assert_close(both.maps[image, : alone.counts[0]], alone.maps[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cells", [1, 2, 3])
@pytest.mark.parametrize("clusters", [None, 2, 9])
def test_a_few_cells_are_no_more_segments(cells, clusters):
    found = normalised_cut(torch.randn(1, cells, 8, generator=torch.Generator().manual_seed(0)), clusters)
    assert 1 <= found.counts[0] <= cells


def test_a_flat_image_has_segments_without_a_fault():
    assert normalised_cut(torch.ones(1, 64, 8), None).counts[0] >= 1


def test_features_that_are_not_finite_are_named():
    features = torch.randn(3, 16, 8)
    features[1, 3, 2] = torch.nan
    with pytest.raises(AttentionError, match=r"images \[1\]") as raised:
        normalised_cut(features, None)
    assert raised.value.images == (1,)
