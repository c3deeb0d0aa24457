"""The embedded model means something: a guard against broken capture, merging or weights, no claim about quality."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffseg import DiffSeg, SegmentConfig, segment_attention
from diffseg.config import ResolvedConfig
from diffseg.evaluation.partition import adjusted_rand, overlaps
from diffseg.evaluation.scores import score_image
from diffseg.method.geometry import frame, to_model
from diffseg.models.attention import AttentionMaps
from diffseg.segmenter import Model
from infra.embedded.architecture import DEFAULTS, LAYOUT
from infra.embedded.checkpoints import build
from infra.scenes.scene import benchmark

SCENES = 10  # two of every kind
FLOOR_ARI, FLOOR_MIOU = 0.60, 0.55  # the shipped weights stand at 0.75 and 0.67 on these
CEILING_ARI, CEILING_MIOU = 0.25, 0.35  # what random weights must stay below at any threshold
FOLDER = Path(str(files("diffseg") / "tiny"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes():
    return list(benchmark(SCENES))


@pytest.fixture(scope="module")
def trained():
    return DiffSeg.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def maps(trained, scenes):
    return [attend(trained.backend, scene.image) for scene in scenes]


def attend(backend: Model, image: np.ndarray) -> AttentionMaps:
    return backend.attend(to_model(image, frame(image.shape[:2], backend.config))[None])


def relabel(config: ResolvedConfig, maps: AttentionMaps, tau: float, size: tuple[int, int]) -> np.ndarray:
    config = replace(config, thresholds=(tau,) * 3, edges=False, tree=False, vectors=False, cut=None)
    labels = segment_attention(maps.levels, config, size, grid=maps.grid)
    return labels[0].numpy().astype(np.int64)


def agreement(label_maps, scenes):
    """Mean ARI and mIoU over scenes."""
    scores = [
        score_image(labels, [scene.truth.astype(np.int64)]) for labels, scene in zip(label_maps, scenes, strict=True)
    ]
    return float(np.mean([score.ari for score in scores])), float(np.mean([score.miou for score in scores]))


def test_the_trained_model_finds_the_segments_of_scenes(trained, scenes):
    found = trained.segment([scene.image for scene in scenes])
    ari, miou = agreement([result.label_map.astype(np.int64) for result in found], scenes)
    assert ari > FLOOR_ARI
    assert miou > FLOOR_MIOU


def test_random_weights_find_next_to_nothing_at_any_threshold(scenes, tmp_path):
    """Same autoencoder, same code: what the trained model knows is in its UNet."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    unet: Any = build(LAYOUT, seed=5).unet
    unet.save_pretrained(tmp_path / "unet")
    random = DiffSeg.from_pretrained(str(tmp_path), device="cpu")
    maps = [attend(random.backend, scene.image) for scene in scenes]
    for tau in (1e-3, 2e-3, 4e-3, 8e-3):
        label_maps = [relabel(random.config, one, tau, (256, 256)) for one in maps]
        ari, miou = agreement(label_maps, scenes)
        assert ari < CEILING_ARI
        assert miou < CEILING_MIOU


def test_a_higher_threshold_gives_fewer_segments(trained, scenes, maps):
    taus = (0.1, 0.2, 0.4, 0.8)
    counts = [np.mean([relabel(trained.config, one, tau, (256, 256)).max() + 1 for one in maps]).item() for tau in taus]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[-1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_the_same_segments(trained, scenes, dtype):
    images = [scene.image for scene in scenes[:2]]
    half = DiffSeg.from_pretrained("tiny", SegmentConfig(dtype=dtype), device="cpu")
    for exact, rounded in zip(trained.segment(images), half.segment(images), strict=True):
        assert adjusted_rand(*overlaps(rounded.label_map, exact.label_map)) > 0.95


def test_the_weights_are_small_safe_and_bring_their_own_defaults():
    weights = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in weights) < 16e6
    assert {path.suffix for path in weights} <= {".safetensors", ".json", ".md", ".txt"}
    assert json.loads((FOLDER / "diffseg.json").read_text()) == DEFAULTS


def test_stock_diffusers_loads_it_and_denoises():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    image = pipeline("", num_inference_steps=3, guidance_scale=1.0, latents=noise, output_type="np").images
    assert image.shape == (1, 256, 256, 3)
    assert np.isfinite(image).all()
