"""What an image costs, stage by stage, against what this machine could do at best.

Goes in: a loaded model. Comes out: seconds an image of each stage, its arithmetic, and the measured limits.
Letters: B images a batch, n cells of a level, N cells of the finest one.
"""

import io
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffseg.aggregate import aggregate
from diffseg.backends import Backend
from diffseg.capture import AttentionMaps, capture_attention
from diffseg.config import SegmentConfig
from diffseg.frames import frame, to_model
from diffseg.labels import assign
from diffseg.merging import Proposals, merge
from diffseg.precision import tensor_cores
from diffseg.segmenter import FLOOR, DiffSeg, label
from pipeline.images import decode, encode_label_map

PHOTOS = Path(__file__).parent / "photos"
TWELVE_MEGAPIXELS = (4000, 3000)
REGIONS = 24  # of the attention the core is timed on: random weights alone would give one
ANCHORS = 256  # 16 x 16, as published

aten = torch.ops.aten
Step = Callable[[], Any]


@dataclass(frozen=True)
class Limits:
    """What the machine does at best, measured beside the stages: operations of a matrix product, bytes of a copy."""

    model_flop_s: float  # in the model's precision
    core_flop_s: float  # in the precision of the distances
    byte_s: float


@dataclass(frozen=True)
class Stage:
    """One stage; work is a lower bound of what any implementation must do."""

    name: str
    seconds: float  # an image, median
    flop: float = 0.0
    bytes: float = 0.0
    host: bool = False  # runs in threads beside the device

    def limit(self, limits: Limits) -> float | None:
        """The seconds below which this machine cannot go; None where no work was stated."""
        rate = limits.model_flop_s if self.name in ("vae", "unet", "capture") else limits.core_flop_s
        return max(self.flop / rate, self.bytes / limits.byte_s) or None


@dataclass(frozen=True)
class Measured:
    """Everything of one run of the bench."""

    stages: tuple[Stage, ...]
    limits: Limits
    whole: float  # seconds an image from decoded pixels to label maps, both in host memory
    large_decode: float  # seconds for a JPEG of 12 megapixels, decoded and resized
    peak_bytes: int
    batch_size: int


class Structured:
    """A model that pays the full price of its pass, then answers with attention that has regions."""

    def __init__(self, backend: Backend, maps: AttentionMaps) -> None:
        self.backend = backend
        self.maps = maps

    @property
    def config(self) -> SegmentConfig:
        """The model's own."""
        return self.backend.config

    @property
    def device(self) -> torch.device:
        """The model's own."""
        return self.backend.device

    def attend(self, pixels: torch.Tensor) -> AttentionMaps:
        """The prepared maps, after a real pass."""
        self.backend.attend(pixels)
        return self.maps

    def batch_size(self) -> int:
        """The model's own."""
        return self.backend.batch_size()


class Clock:
    """Times steps on one device: medians, a warm-up first, interleaved where two are compared."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats

    def __call__(self, *steps: Step) -> list[float]:
        """Median seconds of each step."""
        taken: list[list[float]] = [[] for _ in steps]
        for attempt in range(self.repeats + 1):
            for step, times in zip(steps, taken, strict=True):
                seconds = self._once(step)
                if attempt:  # the first one warms caches and compilers up
                    times.append(seconds)
        return [median(times) for times in taken]

    def _once(self, step: Step) -> float:
        self._wait()
        begin = time.perf_counter()
        step()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.inference_mode()
def measure(backend: Backend, batch_size: int, repeats: int, *, structured: bool) -> Measured:
    """Time every stage; structured: the core sees prepared attention, since random weights give none worth merging."""
    clock = Clock(backend.device, repeats)
    if backend.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backend.device)
    side = int(backend.config.image_size or 0)
    photos = _photos(batch_size, (side, side))
    planned = [frame(photo.shape[:2], backend.config) for photo in photos]
    pixels = torch.stack([to_model(*pair) for pair in zip(photos, planned, strict=True)])
    model_stages, maps = _model_stages(backend, pixels, clock)
    if structured:
        maps = structured_maps(maps, batch_size)
    core_stages = _core_stages(backend.config, maps, planned, clock)
    dressed = DiffSeg(Structured(backend, maps) if structured else backend, batch_size)
    (whole,) = clock(lambda: dressed.segment(photos))
    [result, *_] = dressed.segment(photos)
    host = Clock(torch.device("cpu"), repeats)
    small, large = (_jpeg(photos[0], size) for size in ((640, 480), TWELVE_MEGAPIXELS))
    decoded, large_decoded, encoded = host(
        lambda: _prepare(small, backend.config),
        lambda: _prepare(large, backend.config),
        lambda: encode_label_map(result.label_map),
    )
    stages = (Stage("decode", decoded, host=True), *model_stages, *core_stages, Stage("encode", encoded, host=True))
    limits = measure_limits(backend)
    return Measured(stages, limits, whole / batch_size, large_decoded, peak_bytes(backend.device), batch_size)


def _model_stages(backend: Backend, pixels: torch.Tensor, clock: Clock) -> tuple[list[Stage], AttentionMaps]:
    unet: Any = backend.unet
    latents, conditions = backend.latents(pixels), backend.conditions(pixels)
    count, sides = len(pixels), (latents.shape[2], latents.shape[3])

    def plain() -> None:
        unet(latents, backend.config.timestep, **conditions)

    def captured() -> AttentionMaps:
        with capture_attention(unet) as store:
            plain()
        return store.maps(sides)

    (vae,) = clock(lambda: backend.latents(pixels))
    without, with_capture = clock(plain, captured)
    cells = [level.shape[1] for level in captured().levels]
    layers = [layers for _, layers in backend.spec.levels]
    channels = [_attention_channels(unet, depth) for depth in range(len(unet.down_blocks))][-len(cells) :]
    products = sum(2 * n * n * c * k for n, c, k in zip(cells, channels, layers, strict=True))
    traffic = sum(2 * 4 * n * n * k for n, k in zip(cells, layers, strict=True))  # each layer adds to its level once
    one = pixels[:1]
    stages = [
        Stage("vae", vae / count, count_flop(lambda: backend.latents(one))),
        Stage("unet", without / count, count_flop(plain) / count),
        Stage("capture", (with_capture - without) / count, products, traffic),
    ]
    return stages, captured()


def _core_stages(config: SegmentConfig, maps: AttentionMaps, planned: Sequence[Any], clock: Clock) -> list[Stage]:
    thresholds = config.thresholds or ()
    count, cells = len(planned), maps.levels[0].shape[1]
    floor = FLOOR if config.mode == "fast" else 0.0

    def merged() -> Proposals:
        with tensor_cores(allowed=config.dtype != "float32"):
            return merge(aggregate(maps.levels, maps.grid, floor), thresholds, config.anchors_per_side)

    proposals = merged()
    found = [proposals.maps[i, : proposals.counts[i]].unflatten(-1, maps.grid) for i in range(count)]

    def assigned() -> None:
        for each, image in zip(found, planned, strict=True):
            assign(each, image.output)

    aggregating, both, argmax, whole = clock(
        lambda: aggregate(maps.levels, maps.grid, floor), merged, assigned, lambda: label(maps, planned, config)
    )
    finest, rest = maps.levels[0][0].nbytes, sum(level[0].nbytes for level in maps.levels[1:])
    pixels = planned[0].output[0] * planned[0].output[1]
    return [
        Stage("aggregate", aggregating / count, bytes=2 * rest + finest),
        Stage("merge", (both - aggregating) / count, flop=3 * 2 * ANCHORS * cells**2, bytes=finest),
        Stage("argmax", argmax / count, bytes=4 * pixels),
        Stage("clean", max(0.0, whole - both - argmax) / count),
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
    return AttentionMaps(tuple(levels), like.grid)


def measure_limits(backend: Backend) -> Limits:
    """The best of several matrix products and copies."""
    cuda = backend.device.type == "cuda"
    side, count = (8192, 1 << 28) if cuda else (1024, 1 << 25)
    clock = Clock(backend.device, 7)
    rates = []
    reduced = backend.config.dtype != "float32"
    for dtype in (getattr(torch, str(backend.config.dtype)), torch.float32):
        a, b = (torch.randn(side, side, device=backend.device).to(dtype) for _ in range(2))
        with tensor_cores(allowed=reduced):
            rates.append(2 * side**3 / clock(partial(torch.mm, a, b))[0])
    source = torch.ones(count, device=backend.device)
    target = torch.empty_like(source)
    return Limits(rates[0], rates[1], 2 * source.nbytes / clock(lambda: target.copy_(source))[0])


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: of the device, or of this process on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _attention_channels(unet: Any, depth: int) -> int:
    return int(unet.config.block_out_channels[depth])


def count_flop(step: Step) -> float:
    """Operations of a step's products and convolutions; a multiply-add counts two."""
    counter = FlopCounterMode(
        display=False, custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    )
    with counter:
        step()
    return float(counter.get_total_flops())


def _attention_flop(query: Any, key: Any, *_: Any, **__: Any) -> int:
    images, heads, rows, channels = query
    return int(4 * images * heads * rows * key[2] * channels)


def _photos(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    paths = sorted(PHOTOS.glob("*.jpg"))
    loaded = [np.asarray(Image.open(path).convert("RGB").resize(size)) for path in paths[:count]]
    return [loaded[i % len(loaded)] for i in range(count)]


def _jpeg(photo: np.ndarray, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _prepare(data: bytes, config: SegmentConfig) -> torch.Tensor:
    image = decode(data)
    return to_model(image, frame(image.shape[:2], config))
