"""Scenes of materials and shapes that the embedded model never trained on, with small objects and with clutter.

    python infra/benchmarks/masks/unseen.py recall --model tiny --count 40 [--setting crop_layers=1]
    python infra/benchmarks/masks/unseen.py sheet scenes.jpg

`recall` says how many objects of 8 to 24 pixels a segment covers with an IoU of at least .5, and what an image costs.
Twelve materials on two to four grounds, four kinds of objects, all drawn here: nothing of `infra.scenes` but the
record is used, so that training cannot have seen any of it (`tests/infra/test_unseen.py`).
"""

import argparse
import colorsys
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[3]))

from diffseg import DiffSeg, SegmentConfig
from diffseg.evaluation.bootstrap import mean_interval
from infra.scenes.scene import Scene

SIZE = (320, 480)
SMALL = (8, 24)  # pixels across
SEED = 20261128
Field = np.ndarray  # float [H, W] in 0..1
Draw = np.random.Generator


def _plane(size: tuple[int, int], draw: Draw, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in periods, turned and shifted at random."""
    y, x = np.mgrid[: size[0], : size[1]] / period
    angle = draw.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle) + draw.random(), y * np.cos(angle) - x * np.sin(angle) + draw.random()


def honeycomb(size: tuple[int, int], draw: Draw) -> Field:
    """Hexagonal cells with walls: the third-nearest of three waves."""
    u, v = _plane(size, draw, draw.uniform(9, 20))
    waves = [np.cos(2 * np.pi * (u * np.cos(a) + v * np.sin(a))) for a in np.pi / 3 * np.arange(3)]
    return (np.sum(waves, 0) > draw.uniform(-0.6, 0.2)) * 1.0


def cracks(size: tuple[int, int], draw: Draw) -> Field:
    """Dried mud: the distance to the border between the two nearest of many points."""
    points = draw.random((int(size[0] * size[1] / draw.uniform(150, 600)) + 3, 2)) * size
    y, x = np.mgrid[: size[0], : size[1]]
    near = np.full((2, *size), np.inf)
    for row, column in points:
        far = np.hypot(y - row, x - column)
        near = np.sort(np.concatenate([near, far[None]]), 0)[:2]
    return np.clip((near[1] - near[0]) / 4, 0, 1)


def rings(size: tuple[int, int], draw: Draw) -> Field:
    """The end of a log."""
    u, v = _plane(size, draw, draw.uniform(5, 12))
    return 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(u - draw.uniform(-20, 20), v - draw.uniform(-20, 20)))


def herringbone(size: tuple[int, int], draw: Draw) -> Field:
    """Tweed: stripes whose slant changes from column to column."""
    u, v = _plane(size, draw, draw.uniform(6, 12))
    return ((v + np.abs(u % 2 - 1)) % 1 < 0.5) * 1.0


def dots(size: tuple[int, int], draw: Draw) -> Field:
    """A lattice of equal dots."""
    u, v = _plane(size, draw, draw.uniform(8, 16))
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < draw.uniform(0.2, 0.4)) * 1.0


def halftone(size: tuple[int, int], draw: Draw) -> Field:
    """Dots that grow from one side to the other, as in print."""
    u, v = _plane(size, draw, draw.uniform(5, 8))
    grown = (v - v.min()) / np.ptp(v)
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.15 + 0.45 * grown) * 1.0


def tartan(size: tuple[int, int], draw: Draw) -> Field:
    """Crossing bands of three widths."""
    u, v = _plane(size, draw, draw.uniform(18, 36))
    return sum(0.25 * ((axis * k) % 1 < 0.5) for axis in (u, v) for k in (1, 3))


def labyrinth(size: tuple[int, int], draw: Draw) -> Field:
    """Brain coral: noise of one wavelength, cut at its mean."""
    noise, scale = draw.standard_normal(size), draw.uniform(1.5, 3.5)
    band = ndimage.gaussian_filter(noise, scale) - ndimage.gaussian_filter(noise, 1.6 * scale)
    return (band > 0) * 1.0


def scales(size: tuple[int, int], draw: Draw) -> Field:
    """Fish scales: rows of arcs, every other row shifted by half."""
    u, v = _plane(size, draw, draw.uniform(10, 18))
    return np.clip(np.hypot((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5, v % 1) / 1.1, 0, 1)


def knit(size: tuple[int, int], draw: Draw) -> Field:
    """Stitches: a V in every cell."""
    u, v = _plane(size, draw, draw.uniform(8, 14))
    return (np.abs((v - 0.9 * np.abs(u % 1 - 0.5)) % 1 - 0.5) < 0.3) * 1.0


def marble(size: tuple[int, int], draw: Draw) -> Field:
    """Veins: a wave bent by noise of several sizes."""
    u, _ = _plane(size, draw, draw.uniform(20, 40))
    bend = sum(ndimage.gaussian_filter(draw.standard_normal(size), s) * s * s / 8 for s in (2, 4, 8, 16))
    return np.abs(np.sin(np.pi * (u + bend)))


def basket(size: tuple[int, int], draw: Draw) -> Field:
    """Wickerwork: squares of stripes, each across its neighbours."""
    u, v = _plane(size, draw, draw.uniform(12, 22))
    across = (np.floor(u) + np.floor(v)) % 2 < 1
    return 0.5 + 0.5 * np.sin(6 * np.pi * np.where(across, u, v))


MATERIALS: tuple[Callable[[tuple[int, int], Draw], Field], ...] = (
    *(honeycomb, cracks, rings, herringbone, dots, halftone),
    *(tartan, labyrinth, scales, knit, marble, basket),
)


def _polar(across: float, draw: Draw) -> tuple[np.ndarray, np.ndarray, int]:
    side = int(across) + 3
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(y, x) / (across / 2), np.arctan2(y, x) + draw.uniform(0, 2 * np.pi), side


def star(across: float, draw: Draw) -> np.ndarray:
    """Five points."""
    far, turn, _ = _polar(across, draw)
    return far < 0.7 + 0.3 * np.cos(5 * turn)


def crescent(across: float, draw: Draw) -> np.ndarray:
    """A moon."""
    far, turn, _ = _polar(across, draw)
    return (far < 1) & (np.hypot(far * np.cos(turn) - 0.7, far * np.sin(turn)) > 0.75)


def cross(across: float, draw: Draw) -> np.ndarray:
    """A plus."""
    far, turn, _ = _polar(across, draw)
    x, y = np.abs(far * np.cos(turn)), np.abs(far * np.sin(turn))
    return (np.minimum(x, y) < 0.35) & (np.maximum(x, y) < 1)


def ring(across: float, draw: Draw) -> np.ndarray:
    """A tyre."""
    far, _, _ = _polar(across, draw)
    return (far < 1) & (far > 0.45)


OBJECTS: tuple[Callable[[float, Draw], np.ndarray], ...] = (star, crescent, cross, ring)


def _painted(size: tuple[int, int], draw: Draw, material: int) -> np.ndarray:
    """A material in two tones of a colour."""
    base = np.array(colorsys.hsv_to_rgb(draw.random(), draw.uniform(0.1, 0.8), draw.uniform(0.25, 0.9)))
    field = ndimage.gaussian_filter(MATERIALS[material](size, draw).astype(float), 0.7)
    return base * (1 + draw.uniform(0.25, 0.7) * (field[..., None] - 0.5))


def unseen(number: int, size: tuple[int, int] = SIZE, objects: int = 14) -> tuple[Scene, np.ndarray]:
    """A scene by its number, and which of its ids are small objects, bool [n]."""
    draw = np.random.default_rng([SEED, number])
    kinds = iter(draw.permutation(len(MATERIALS)))
    y, x = np.mgrid[: size[0], : size[1]]
    seeds = draw.random((int(draw.integers(2, 5)), 2)) * size
    truth = np.argmin([np.abs(y - a) + np.abs(x - b) for a, b in seeds], 0).astype(np.int32)
    image = np.zeros((*size, 3))
    for ground in range(len(seeds)):
        image[truth == ground] = _painted(size, draw, next(kinds))[truth == ground]
    for _ in range(objects):
        shape = OBJECTS[draw.integers(len(OBJECTS))](draw.uniform(*SMALL), draw)
        top, left = (int(draw.integers(0, whole - part)) for whole, part in zip(size, shape.shape, strict=True))
        place = slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1])
        image[place][shape] = _painted(shape.shape, draw, int(draw.integers(len(MATERIALS))))[shape]
        truth[place][shape] = truth.max() + 1
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + draw.normal(0, 0.01, image.shape)
    sizes = np.bincount(truth.ravel())
    kept = np.flatnonzero(sizes >= SMALL[0] ** 2 // 4)  # what others have covered is no object any more
    nearest = ndimage.distance_transform_edt(~np.isin(truth, kept), return_distances=False, return_indices=True)
    ids = np.searchsorted(kept, truth[tuple(nearest)]).astype(np.int32)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), ids), kept >= len(seeds)


def found(truth: np.ndarray, small: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """Whether a segment covers each small object with an IoU of at least .5."""
    table = np.zeros((len(small), label_map.max() + 1))
    np.add.at(table, (truth, label_map), 1)
    iou = table / (table.sum(1, keepdims=True) + table.sum(0) - table)
    return iou[small].max(1) >= 0.5


def scenes(count: int) -> Iterator[tuple[Scene, np.ndarray]]:
    """The first so many."""
    return (unseen(number) for number in range(count))


def recall(model: str, count: int, settings: dict) -> str:
    """Recall of small objects, an image at a time, and seconds of a core an image."""
    segmenter = DiffSeg.from_pretrained(model, SegmentConfig(**settings), device="cpu")
    shares, segments, seconds = [], [], 0.0
    for scene, small in scenes(count):
        began = process_time()
        [result] = segmenter.segment([scene.image])
        seconds += process_time() - began
        shares.append(found(scene.truth, small, result.label_map).mean())
        segments.append(len(result.segments))
    value = mean_interval(np.array(shares))
    return (
        f"{Path(model).name} {settings or ''}: recall {value.value:.3f} ({value.low:.3f} to {value.high:.3f}), "
        f"{np.mean(segments):.1f} segments, {seconds / count:.2f} s of a core an image, {count} scenes\n"
    )


def main() -> None:
    """Measure, or draw a sheet of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("recall", "sheet"))
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--setting", action="append", default=[], help="of SegmentConfig, as TOML: crop_layers=1")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.step == "recall":
        sys.stdout.write(recall(given.model, given.count, tomllib.loads("\n".join(given.setting))))
    else:
        rows = [np.hstack([unseen(3 * row + column)[0].image for column in range(3)]) for row in range(4)]
        Image.fromarray(np.vstack(rows)).save(given.output, quality=85)


if __name__ == "__main__":
    main()
