"""Partitions of generated scenes, and the shapes that lie on them. Letters: H x W pixels. Every shape is random."""

import numpy as np
from PIL import Image, ImageDraw

from diffseg.types import Bool, Int
from infra.scenes.textures import Random, Size, spectral_noise


def _warped_grid(random: Random, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (y, x), bent smoothly."""
    strength = random.choice([0.0, 3.0, 8.0, 16.0])
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)

    def bent(axis: np.ndarray) -> np.ndarray:
        moved: np.ndarray = axis + strength * spectral_noise(random, size, random.uniform(1.6, 2.2))
        return moved

    return bent(y), bent(x)


def cells(random: Random, size: Size) -> Int[np.ndarray, "H W"]:
    """Two to seven cells around random points, with bent borders."""
    y, x = _warped_grid(random, size)
    points = random.random((int(random.integers(2, 8)), 2)) * size
    nearest: np.ndarray = np.argmin([(y - row) ** 2 + (x - column) ** 2 for row, column in points], axis=0)
    return nearest


def bands(random: Random, size: Size) -> Int[np.ndarray, "H W"]:
    """Sky, hills, water, shore: two to four layers, mostly level."""
    y, x = _warped_grid(random, size)
    angle = random.choice([0.0, 0.0, random.normal(0, 0.2), random.uniform(0, np.pi)])
    height = y * np.cos(angle) + x * np.sin(angle)
    borders = np.sort(random.uniform(0.1, 0.9, int(random.integers(1, 4))))
    layers: np.ndarray = np.digitize(height, np.quantile(height, borders))
    return layers


def cuts(random: Random, size: Size) -> Int[np.ndarray, "H W"]:
    """Walls, floors, facades: straight cuts, each through the largest part left."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    parts = np.zeros(size, int)
    for new in range(1, int(random.integers(2, 6))):
        inside = parts == np.bincount(parts.ravel()).argmax()
        angle = random.choice([0.0, np.pi / 2]) + random.normal(0, 0.15)
        distance = y * np.cos(angle) + x * np.sin(angle)
        parts[inside & (distance > np.quantile(distance[inside], random.uniform(0.25, 0.75)))] = new
    return parts


def plain(random: Random, size: Size) -> Int[np.ndarray, "H W"]:
    """A background of one piece, or of two."""
    return np.zeros(size, int) if random.random() < 0.6 else bands(random, size).clip(0, 1)


PARTITIONS = {"cells": cells, "bands": bands, "cuts": cuts, "objects": plain, "bodies": plain}


def _fill(size: Size, *polygons: np.ndarray) -> Bool[np.ndarray, "H W"]:
    """The union of polygons given as [corners, 2] of (x, y)."""
    image = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon(polygon.ravel().tolist(), fill=1)
    return np.array(image)


def _place(random: Random, size: Size, smallest: float, largest: float) -> tuple[np.ndarray, float]:
    """A centre (x, y) and a radius in pixels, between two shares of the shorter side."""
    centre = random.uniform(0.08, 0.92, 2) * (size[1], size[0])
    return centre, min(size) * float(np.exp(random.uniform(np.log(smallest), np.log(largest))))


def _outline(random: Random, centre: np.ndarray, axes: tuple[float, float], rough: float) -> np.ndarray:
    """A closed curve about an ellipse, wobbling by `rough` of its radius."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = np.arange(2, 9)
    amplitude, phase = random.normal(0, rough / waves), random.uniform(0, 2 * np.pi, len(waves))
    radius = np.exp((amplitude * np.cos(turn[:, None] * waves + phase)).sum(1))
    tilt = random.uniform(0, np.pi)
    u, v = axes[0] * radius * np.cos(turn), axes[1] * radius * np.sin(turn)
    curve: np.ndarray = centre + np.stack([u * np.cos(tilt) - v * np.sin(tilt), u * np.sin(tilt) + v * np.cos(tilt)], 1)
    return curve


def blob(random: Random, size: Size) -> Bool[np.ndarray, "H W"]:
    """A stone, a fruit, a bush."""
    centre, radius = _place(random, size, 0.07, 0.35)
    return _fill(
        size, _outline(random, centre, (radius, radius * random.uniform(0.4, 1)), random.choice([0.05, 0.2, 0.6]))
    )


def box(random: Random, size: Size) -> Bool[np.ndarray, "H W"]:
    """A house, a sign, a table: four corners, seldom square."""
    centre, radius = _place(random, size, 0.08, 0.35)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (radius, radius * random.uniform(0.3, 1.5))
    corners = corners + random.normal(0, 0.12 * radius, (4, 2))
    tilt = random.choice([0.0, random.uniform(0, np.pi)])
    return _fill(size, centre + corners @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]))


def limb(start: np.ndarray, end: np.ndarray, thick: float, thin: float) -> np.ndarray:
    """A tapering stick from one point to another, widths in pixels."""
    along = end - start
    across = np.array([-along[1], along[0]]) / (np.linalg.norm(along) + 1e-6)
    return np.stack(
        [start + across * thick / 2, end + across * thin / 2, end - across * thin / 2, start - across * thick / 2]
    )


def pole(random: Random, size: Size) -> Bool[np.ndarray, "H W"]:
    """A trunk, a mast, a rail: long and thin, mostly upright."""
    centre, length = _place(random, size, 0.3, 1.0)
    angle = random.choice([np.pi / 2, random.uniform(0, np.pi)]) + random.normal(0, 0.1)
    half = length * np.array([np.cos(angle), np.sin(angle)]) / 2
    thick = min(size) * np.exp(random.uniform(np.log(0.02), np.log(0.1)))
    return _fill(size, limb(centre - half, centre + half, thick, thick * random.uniform(0.5, 1)))


def body(random: Random, size: Size) -> Bool[np.ndarray, "H W"]:
    """An animal or a person as a cut-out has it: trunk, head, legs, perhaps a tail."""
    centre, radius = _place(random, size, 0.1, 0.28)
    slim = random.uniform(0.35, 0.8)
    trunk = _outline(random, centre, (radius, radius * slim), 0.15)
    heading = random.uniform(0, 2 * np.pi)
    head_at = centre + radius * random.uniform(1.0, 1.5) * np.array([np.cos(heading), np.sin(heading)])
    head = _outline(random, head_at, (radius * random.uniform(0.25, 0.5),) * 2, 0.2)
    parts = [trunk, head, limb(centre, head_at, radius * 0.6, radius * 0.35)]
    for _ in range(int(random.integers(1, 6))):
        start = centre + random.uniform(-0.7, 0.7, 2) * radius * (1, slim)
        reach = radius * random.uniform(0.8, 1.8)
        angle = random.normal(np.pi / 2, 0.5)
        thick = radius * random.uniform(0.12, 0.4)
        parts.append(limb(start, start + reach * np.array([np.cos(angle), np.sin(angle)]), thick, thick * 0.6))
    return _fill(size, *parts)
