"""Materials for generated scenes: fields of light and dark, and the colours that turn them into surfaces.

Input: a random generator and a size. Output: a field float32 [H, W] in [0, 1], or a painted surface [H, W, 3] in
0..255. Natural images have spectra that fall with frequency, occlusion at every scale and mostly grey contrast: so do
these.
"""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft, ndimage

from diffseg.types import Float

Size = tuple[int, int]  # rows, columns
Random = np.random.Generator


def spectral_noise(random: Random, size: Size, slope: float, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Noise whose amplitude falls as frequency to the power of -slope, [H, W], zero mean, unit variance.

    stretch: how much longer its grain is along `angle` (radians) than across.
    """
    rows, columns = size
    y, x = np.meshgrid(fft.fftfreq(rows), fft.rfftfreq(columns), indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2 + (0.5 / max(size)) ** 2)
    gain = (radius**-slope).astype(np.float32)
    gain[0, 0] = 0
    spectrum = fft.rfft2(random.standard_normal(size, dtype=np.float32)) * gain
    field = fft.irfft2(spectrum, s=size)
    return np.asarray(field / (field.std() + 1e-9), np.float32)


def to_unit(field: np.ndarray, spread: float = 2.0) -> np.ndarray:
    """A field of unit variance squeezed into [0, 1], `spread` deviations to either side."""
    return np.clip(0.5 + field / (2 * spread), 0, 1).astype(np.float32)


def flat(random: Random, size: Size) -> np.ndarray:
    """Painted walls: very little texture, but never none."""
    return to_unit(spectral_noise(random, size, 2.0), 6.0)


def ramp(random: Random, size: Size) -> np.ndarray:
    """Skies, still water, backdrops: a slow passage from one tone to another."""
    y, x = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j].astype(np.float32)
    angle = random.choice([np.pi / 2, random.uniform(0, 2 * np.pi)]) + random.normal(0, 0.2)
    height = x * np.cos(angle) + y * np.sin(angle)
    height = (height - height.min()) / (np.ptp(height) + 1e-6)
    bend = spectral_noise(random, size, 2.2) * random.choice([0.0, 0.03, 0.1])
    return np.asarray(np.clip(height ** random.uniform(0.5, 2) + bend, 0, 1), np.float32)


def patches(random: Random, size: Size) -> np.ndarray:
    """Clouds, coats, rocks, clothes: two or three tones in large bent patches, each faintly grained."""
    noise = spectral_noise(
        random, size, random.uniform(1.5, 2.2), random.choice([1.0, 1.0, 3.0]), random.uniform(0, np.pi)
    )
    sharp = random.uniform(0.5, 6)
    steps = 1 / (1 + np.exp(-sharp * 3 * (noise - random.normal(0, 0.5))))
    return np.clip(0.9 * steps + 0.03 * spectral_noise(random, size, 0.8), 0, 1).astype(np.float32)


def grain(random: Random, size: Size) -> np.ndarray:
    """Stone, clouds, water, bark: coloured noise, often drawn out in one direction."""
    stretch = random.choice([1.0, 1.0, 2.0, 5.0])
    return to_unit(spectral_noise(random, size, random.uniform(0.5, 2.0), stretch, random.uniform(0, np.pi)))


def waves(random: Random, size: Size) -> np.ndarray:
    """Ripples, cloth, stripes: a bent sine of random sharpness."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, period = random.uniform(0, np.pi), float(np.exp(random.uniform(np.log(4), np.log(40))))
    bend = spectral_noise(random, size, 2.0) * random.uniform(0, 0.6) * period
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle) + bend) * 2 * np.pi / period)
    return np.asarray(np.clip(0.5 + wave * random.uniform(0.4, 2.5) / 2, 0, 1), np.float32)


def spots(random: Random, size: Size) -> np.ndarray:
    """Dappled light, coats of animals, flowers in grass: noise of one scale, cut at a level."""
    scale = np.exp(random.uniform(np.log(1.5), np.log(10)))
    noise = ndimage.gaussian_filter(random.standard_normal(size, dtype=np.float32), scale)
    noise = noise / (noise.std() + 1e-9)
    light: np.ndarray = np.clip((noise - random.uniform(-0.5, 1.2)) * random.uniform(1, 5) + 0.5, 0, 1)
    return light


def leaves(random: Random, size: Size) -> np.ndarray:
    """Foliage, pebbles, crowds: overlapping shapes of many sizes (the dead-leaves model)."""
    image = Image.new("L", size[::-1], 128)
    draw = ImageDraw.Draw(image)
    smallest = np.exp(random.uniform(np.log(1.5), np.log(7)))
    largest = smallest * random.uniform(1.5, 7)
    count = int(min(1500, 2.5 * size[0] * size[1] / (2 * (smallest * largest))))
    radii = smallest * (largest / smallest) ** random.random(count)
    centres = random.random((count, 2)) * (size[1], size[0])
    lengths = radii * random.uniform(1, 3)
    turns = random.normal(random.uniform(0, np.pi), random.choice([0.2, 3.0]), count)
    tones = random.integers(0, 256, count)
    corners = np.linspace(0, 2 * np.pi, int(random.choice([5, 7])), endpoint=False)
    u, v = lengths[:, None] * np.cos(corners), radii[:, None] * np.sin(corners)
    cosine, sine = np.cos(turns)[:, None], np.sin(turns)[:, None]
    outlines = centres[:, None] + np.stack([u * cosine - v * sine, u * sine + v * cosine], -1)
    for outline, tone in zip(outlines.reshape(count, -1).tolist(), tones.tolist(), strict=True):
        draw.polygon(outline, fill=tone)
    return np.asarray(image, np.float32) / 255


def strokes(random: Random, size: Size) -> np.ndarray:
    """Grass, fur, straw, hair, rain: many thin lines about one direction."""
    image = Image.new("L", size[::-1], 110)
    draw = ImageDraw.Draw(image)
    length = random.uniform(6, 40)
    width = int(random.choice([1, 1, 2, 3]))
    count = int(min(2500, 1.6 * size[0] * size[1] / (length * width)))
    centres = random.random((count, 2)) * (size[1] + length, size[0] + length) - length / 2
    turns = random.normal(random.uniform(0, np.pi), random.uniform(0.05, 0.6), count)
    tones = np.clip(random.normal(128, 60, count), 0, 255).astype(int)
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * length
    for line, tone in zip(np.hstack([centres, centres + steps]).tolist(), tones.tolist(), strict=True):
        draw.line(line, fill=tone, width=width)
    return np.asarray(image, np.float32) / 255


def tiles(random: Random, size: Size) -> np.ndarray:
    """Bricks, windows, nets, fields: a turned grid, each cell with a tone of its own, joints between."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle = random.choice([0.0, 0.0, random.uniform(-0.6, 0.6)])
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    height = np.exp(random.uniform(np.log(5), np.log(28)))
    width = height * random.uniform(0.8, 3)
    row = np.floor(v / height)
    u = u / width + 0.5 * (row % 2) * random.integers(2)
    tones = random.random((61, 61)).astype(np.float32)
    tone = tones[row.astype(int) % 61, np.floor(u).astype(int) % 61]
    gap = random.uniform(0.06, 0.25)
    joint = ((v / height) % 1 < gap) | (u % 1 < gap * height / width)
    light = np.where(joint, random.choice([0.0, 1.0]), 0.25 + 0.5 * tone * random.uniform(0.1, 1.0))
    return np.asarray(light, np.float32)


MATERIALS: tuple[tuple[Callable[[Random, Size], np.ndarray], float], ...] = (
    (flat, 0.12),
    (ramp, 0.12),
    (grain, 0.26),
    (patches, 0.12),
    (waves, 0.06),
    (spots, 0.07),
    (leaves, 0.12),
    (strokes, 0.09),
    (tiles, 0.04),
)
HUES = ((0.30, 0.06), (0.09, 0.03), (0.58, 0.05), (0.04, 0.03), (0.14, 0.04))  # green, brown, sky, red and skin, straw


def colour(random: Random) -> Float[np.ndarray, "3"]:
    """A colour as photographs have them: mostly muted, mostly of a few hues."""
    hue, spread = HUES[random.integers(len(HUES))]
    hue = random.normal(hue, spread) % 1 if random.random() < 0.75 else random.random()
    saturation = random.random() ** 1.7 * 0.9
    value = np.clip(random.beta(1.6, 1.6), 0.05, 0.98)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def near(random: Random, base: np.ndarray, distance: float) -> Float[np.ndarray, "3"]:
    """A colour like another: somewhat lighter or darker, a little to the side."""
    moved = base * np.exp(random.normal(0, distance)) + random.normal(0, 60 * distance, 3)
    return np.asarray(np.clip(moved, 4, 251), np.float32)


def paint(random: Random, field: np.ndarray, base: np.ndarray) -> Float[np.ndarray, "H W 3"]:
    """Colour a field: contrast is mostly in brightness, now and then between two colours."""
    contrast = np.exp(random.uniform(np.log(0.08), np.log(0.9)))
    dark = base * (1 - contrast * 0.6)
    bright = base * (1 + contrast * 0.6) + random.normal(0, 10, 3)
    relation = random.random()
    if relation < 0.1:
        bright = colour(random)
    elif relation < 0.3:
        bright = near(random, bright, 0.4)
    surface = dark + field[..., None] * (bright - dark)
    return np.asarray(np.clip(surface, 0, 255), np.float32)


def surface(random: Random, size: Size, base: np.ndarray) -> Float[np.ndarray, "H W 3"]:
    """One material in one colour: what fills a segment of a scene."""
    weights = np.array([weight for _, weight in MATERIALS])
    make = MATERIALS[random.choice(len(MATERIALS), p=weights / weights.sum())][0]
    field = make(random, size)
    if random.random() < 0.4:
        field = np.clip(field + 0.15 * random.random() * spectral_noise(random, size, random.uniform(0.8, 1.6)), 0, 1)
    blur = random.choice([0.0, 0.6, 0.6, 1.0, 2.0])
    if blur:
        field = ndimage.gaussian_filter(field, blur)
    return paint(random, field, base)
