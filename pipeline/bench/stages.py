"""What each stage of labelling costs an image, and the least that it could cost on this machine.

Goes in: a loaded model. Comes out: seconds an image of each stage, its arithmetic, and the measured limits.
Letters: B images a batch, n cells of a level, N cells of the finest one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffseg.config import ResolvedConfig
from diffseg.draw import encoded
from diffseg.evaluation.matching import agreement
from diffseg.hierarchy.leaves import POOL
from diffseg.labels.assign import assign, enlarge
from diffseg.labels.edges import planes, refine_edges
from diffseg.method.aggregate import aggregate
from diffseg.method.geometry import frame, to_model, to_output
from diffseg.method.merge import Proposals
from diffseg.models.attention import AttentionMaps
from diffseg.segmenter import FLOOR, DiffSeg, cluster, label, propose
from pipeline.bench.job import demo_photos
from pipeline.bench.roofline import Limits, clock, count_flop, measure_limits, peak_bytes
from pipeline.inputs.decode import decode
from pipeline.table.label_map import encode_label_map

if TYPE_CHECKING:
    from diffseg.models.load import Backend

Timed = Callable[..., list[float]]  # seconds of steps
PHOTO = (480, 640)  # height and width
PHOTO_SIZES = ((640, 480), (4000, 3000))  # width, height; the larger one has 12 megapixels
REGIONS = 24  # in the prepared attention: that of random weights has one region
MODEL_STAGES = ("vae", "unet", "vit", "capture")
ANCHORS = 256  # 16 x 16, as published
EDGE_BYTES = 3 + 2 * 4  # a pixel: its colour is read, and its label read and written


@dataclass(frozen=True)
class StageCost:
    """A stage. flop, bytes: at least so much any implementation must do, an image."""

    name: str
    seconds: float  # an image, median
    flop: float = 0.0
    bytes: float = 0.0
    host: bool = False  # runs in threads beside the device

    def limit(self, limits: Limits) -> float | None:
        """The least seconds an image that this machine allows; None where no work was stated."""
        rate = limits.model_flop_s if self.name in MODEL_STAGES else limits.core_flop_s
        return max(self.flop / rate, self.bytes / limits.byte_s) or None


@dataclass(frozen=True)
class Measured:
    """What one run of the bench measures."""

    stages: tuple[StageCost, ...]
    limits: Limits
    whole: float  # seconds an image from decoded pixels to label maps, both in host memory
    large_decode: float  # seconds for a JPEG of 12 megapixels, decoded and resized
    peak_bytes: int
    batch_size: int


class Structured:
    """A model that takes the time of a real pass, then answers with attention that has regions."""

    def __init__(self, backend: "Backend", maps: AttentionMaps) -> None:
        self._backend, self._maps = backend, maps
        self.config, self.device, self.batch_size = backend.config, backend.device, backend.batch_size

    def attend(self, pixels: torch.Tensor, *, features: bool = False) -> AttentionMaps:
        """The prepared maps, after a real pass."""
        given = self._backend.attend(pixels, features=features)
        return replace(self._maps, features=given.features, features_grid=given.features_grid)


@torch.inference_mode()
def measure(backend: "Backend", batch_size: int, repeats: int, *, structured: bool) -> Measured:
    """Time every stage. structured: the core gets prepared attention, since random weights give none worth merging."""
    timed = partial(clock, backend.device, repeats)
    if backend.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backend.device)
    side = backend.config.image_size
    photos = list(islice(cycle(demo_photos((side, side))), batch_size))
    planned = [frame(photo.shape[:2], backend.config) for photo in photos]
    pixels = torch.stack([to_model(*pair) for pair in zip(photos, planned, strict=True)])
    model_stages, maps = _model_stages(backend, pixels, timed)
    if structured:
        maps = structured_maps(maps, batch_size)
    core_stages = _core_stages(backend.config, maps, planned, photos, timed)
    dressed = DiffSeg(Structured(backend, maps) if structured else backend, batch_size)
    (whole,) = timed(lambda: dressed.segment(photos))
    [result, *_] = dressed.segment(photos)
    resized = (Image.fromarray(photos[0]).resize(size, Image.Resampling.BICUBIC) for size in PHOTO_SIZES)
    small, large = (encoded(photo, "JPEG", quality=90) for photo in resized)
    decoded, large_decoded, to_png = clock(
        torch.device("cpu"),
        repeats,
        lambda: _prepare(small, backend.config),
        lambda: _prepare(large, backend.config),
        lambda: encode_label_map(result.label_map),
    )
    stages = (
        StageCost("decode", decoded, host=True),
        *model_stages,
        *core_stages,
        StageCost("encode", to_png, host=True),
    )
    limits = measure_limits(backend)
    return Measured(stages, limits, whole / batch_size, large_decoded, peak_bytes(backend.device), batch_size)


def agreement_with(backend: "Backend", other: "Backend") -> float:
    """Share of the pixels of the demo's photos that two models label alike, as of two encoders of one UNet."""
    photos = demo_photos(PHOTO)
    labels = ([each.label_map for each in DiffSeg(model).segment(photos)] for model in (backend, other))
    return fmean(agreement(*pair) for pair in zip(*labels, strict=True))


def _model_stages(backend: "Backend", pixels: torch.Tensor, timed: Timed) -> tuple[list[StageCost], AttentionMaps]:
    maps, count = backend.attend(pixels, features=backend.config.vectors), len(pixels)
    steps = backend.steps(pixels)
    *names, plain, capture = steps
    alone = [(name, timed(steps[name])[0]) for name in names]
    without, with_capture = timed(steps[plain], steps[capture])
    cells = [level.shape[1] for level in maps.levels]
    layers = backend.captured()
    products = sum(2 * n * n * c * k for n, (c, k) in zip(cells, layers, strict=True))
    traffic = sum(2 * 4 * n * n * k for n, (_, k) in zip(cells, layers, strict=True))  # each layer adds to its level
    stages = [
        *(StageCost(name, s / count, count_flop(steps[name]) / count) for name, s in [*alone, (plain, without)]),
        StageCost(capture, (with_capture - without) / count, products, traffic),
    ]
    return stages, maps


def _core_stages(
    config: ResolvedConfig, maps: AttentionMaps, planned: Sequence[Any], photos: Sequence[np.ndarray], timed: Timed
) -> list[StageCost]:
    count, cells = len(planned), maps.levels[0].shape[1]
    floor = FLOOR if config.mode == "fast" else 0.0
    method = cluster if config.tree else propose
    found = method(maps, config)

    labels = max(found.counts) if isinstance(found, Proposals) else found.merges.into.shape[1]
    pictures = [to_output(*pair) for pair in zip(photos, planned, strict=True)]

    def paint() -> list[torch.Tensor]:
        if isinstance(found, Proposals):
            own = [found.maps[i, : found.counts[i]].unflatten(-1, maps.grid) for i in range(count)]
            return [assign(each, image.output) for each, image in zip(own, planned, strict=True)]
        cells = found.cells.unflatten(-1, maps.grid)
        return [enlarge(each, image.output) for each, image in zip(cells, planned, strict=True)]

    painted = paint()

    aggregating, both, painting, edges, without, whole = timed(
        lambda: aggregate(maps.levels, maps.grid, floor),
        lambda: method(maps, config),
        paint,
        lambda: refine_edges(painted, planes(pictures, painted[0].device), labels) if config.edges else None,
        lambda: label(maps, planned, replace(config, vectors=False), pictures),
        lambda: label(maps, planned, config, pictures),
    )
    finest, rest = maps.levels[0][0].nbytes, sum(level[0].nbytes for level in maps.levels[1:])
    pixels = planned[0].output[0] * planned[0].output[1]
    compared = (cells / POOL**2) ** 2 + config.leaves * cells if config.tree else 1.5 * ANCHORS * cells
    return [
        StageCost("aggregate", aggregating / count, bytes=2 * rest + finest),
        StageCost("tree" if config.tree else "merge", (both - aggregating) / count, 2 * 2 * compared * cells, finest),
        StageCost("argmax", painting / count, bytes=4 * pixels),
        StageCost("edges", edges / count, bytes=EDGE_BYTES * pixels),
        StageCost("clean", max(0.0, without - both - painting - edges) / count),
        *([StageCost("vectors", max(0.0, whole - without) / count)] if config.vectors else []),
    ]


def structured_maps(like: AttentionMaps, images: int) -> AttentionMaps:
    """Attention of the same shapes in which cells look at their own region: Voronoi cells of random centres."""
    device = like.levels[0].device
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(REGIONS, 2, generator=generator).to(device)
    levels = []
    for level in like.levels:
        shrink = round((like.levels[0].shape[1] / level.shape[1]) ** 0.5)
        height, width = like.grid[0] // shrink, like.grid[1] // shrink
        y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        places = torch.stack([y, x], -1).reshape(-1, 2).to(device)
        region = torch.cdist(places, centres).argmin(-1)
        scores = 4.0 * (region[:, None] == region) - 8.0 * torch.cdist(places, places)
        levels.append(scores.softmax(-1).expand(images, -1, -1).contiguous())
    return replace(like, levels=tuple(levels))


def _prepare(data: bytes, config: ResolvedConfig) -> torch.Tensor:
    image = decode(data)
    return to_model(image, frame(image.shape[:2], config))
