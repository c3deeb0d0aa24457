"""The memory that batches are sized for against what operators allocate: models at full size without numbers, labelling
with them.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffseg.config import ResolvedConfig, SegmentConfig
from diffseg.hierarchy.crops import objects_of
from diffseg.labels import edges
from diffseg.method.geometry import frame
from diffseg.models import device
from diffseg.models.attention import AttentionMaps
from diffseg.models.load import random_backend
from diffseg.models.specs import MODELS
from diffseg.models.unet.loading import new_part
from diffseg.segmenter import cluster, label
from pipeline.bench.stages import structured_maps
from tests.support.cuda.memory import PeakMemory, attention_without_numbers

NEAR = 0.15
MODES = [{}, {"tree": False}, {"refine": True}, {"mode": "quality"}, {"crop_layers": 1}]
QUICK = [("tiny", "float32"), ("sd1.5", "bfloat16"), ("sdxl", "float16"), ("dinov2-small", "float32")]
SMALL_ENCODERS = ("sd1.5, AutoencoderTiny", "sdxl, AutoencoderTiny")
ALL = [(name, dtype) for name in (*MODELS, *SMALL_ENCODERS) for dtype in ("bfloat16", "float16", "float32")]
LABELLED = ResolvedConfig(
    thresholds=(1.1,) * 3, cut=0.4, timestep=300, image_size=512, dtype="bfloat16", tree=True, edges=False,
    vectors=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in ALL]
)
def test_a_pass_takes_what_batches_are_sized_for(name, dtype, monkeypatch):
    monkeypatch.setattr(device, "labelling_bytes", lambda *_: 0)
    kind, _, small_encoder = name.partition(", ")
    backend: Any = random_backend(kind, SegmentConfig(dtype=dtype), "meta")
    if small_encoder:
        backend.encoder = new_part({"_class_name": small_encoder}, "meta").to(backend.unet.dtype)
    images, side = 4, backend.config.image_size
    with attention_without_numbers(), PeakMemory() as memory:
        maps = backend.attend(torch.empty(images, 3, side, side, device="meta"))
    held = sum(level.nbytes for level in maps.levels)

    assert backend.image_bytes() * images == pytest.approx(memory.peak + held, rel=NEAR)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Edges of a batch together."""
    for name in ("PIXELS", "TILE"):
        monkeypatch.setattr(edges, name, {**getattr(edges, name), "cpu": getattr(edges, name)["cuda"]})


def maps_of(side, images):
    """Attention with regions, and vectors."""
    levels = tuple(torch.empty(images, (side >> i) ** 2, (side >> i) ** 2) for i in range(2 if side % 2 == 0 else 1))
    made = structured_maps(AttentionMaps(levels, (side, side)), images)
    return replace(made, features=torch.randn(images, side**2, 64), features_grid=(side, side))


@pytest.mark.parametrize("side", [37, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_labelling_takes_what_batches_are_sized_for(mode, side):
    config = replace(LABELLED, **{"tree": not mode.keys() & {"refine", "mode"}, **mode})
    images, size = 2, (768, 1024)
    maps = maps_of(side, images)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with PeakMemory() as memory:
        if config.crop_layers:
            objects_of(cluster(maps, config, pool=1), maps.grid, (0, 0))
        else:
            label(maps, [frame(size, config)] * images, config, [picture] * images if config.tree else ())
    held = sum(level.nbytes for level in maps.levels) // images

    given = device.labelling_bytes(config, side**2, side**2, held, 0)
    assert given - config.crop_layers * held == pytest.approx(memory.peak / images, rel=2 * NEAR)


@pytest.mark.slow
def test_edges_take_what_batches_are_sized_for(as_on_a_gpu):
    size = 240, 320
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = torch.arange(64).repeat_interleave(1200).view(size)
    with PeakMemory() as memory:
        edges.refine_edges([labels] * 2, edges.planes([picture] * 2, torch.device("cpu")), 64)
    assert 4 * device.EDGES * 2 * labels.numel() == pytest.approx(memory.peak, rel=NEAR)


def test_fewer_images_fit_where_more_is_asked_of_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (24 << 30, 24 << 30))
    cuda = torch.device("cuda", 0)
    plain = replace(LABELLED, tree=False)
    most = device.images_that_fit(cuda, plain, 1 << 30)
    assert 1 < device.images_that_fit(cuda, replace(plain, edges=True), 1 << 30) < most <= 24
    assert device.images_that_fit(cuda, plain, 1 << 40) == 1
    assert device.images_that_fit(torch.device("cpu"), plain, 1) == 1
