"""Generated scenes with pixel-exact truth, for tests, benchmarks and training the embedded model.

Input: a seed. Output: a picture uint8 [H, W, 3] and its label map int32 [H, W], ids contiguous from 0.
A scene is a partition (warped cells, bands, straight cuts, or one background) with objects over it (blobs, boxes,
bodies with limbs, poles), each segment a material of its own, lit, blurred and noisy as photographs are. It is entirely
procedural: no photograph is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

from diffseg.types import Bool, Float, Int, Int32, UInt8
from infra.scenes.shapes import PARTITIONS, blob, body, box, pole
from infra.scenes.textures import Random, Size, colour, near, surface

KINDS = ("cells", "bands", "cuts", "objects", "bodies")
MIN_SHARE = 0.004  # of the picture: smaller segments are merged into what they lie on
BENCHMARK = 20261122  # seed space of the reporting scenes; training draws from others. Frozen: figures depend on it


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its true label map."""

    image: UInt8[np.ndarray, "H W 3"]
    truth: Int32[np.ndarray, "H W"]


def benchmark(count: int = 200, size: int = 256) -> Iterator[Scene]:
    """The reporting scenes: every kind in turn, fixed, never trained or tuned on."""
    for index in range(count):
        yield draw_scene(np.random.default_rng([BENCHMARK, index]), (size, size), KINDS[index % len(KINDS)])


def draw_scene(random: Random, size: Size, kind: str | None = None) -> Scene:
    """One scene with at least two segments. kind: one of KINDS; drawn too where None."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    while True:
        scene = _attempt(random, size, kind or str(random.choice(KINDS)))
        if scene.truth.max() > 0:
            return scene


def _attempt(random: Random, size: Size, kind: str) -> Scene:
    canvas = _Canvas(random, size, PARTITIONS[kind](random, size))
    least, most = {"objects": (1, 6), "bodies": (1, 4)}.get(kind, (0, 3))
    shapes = (body, body, pole) if kind == "bodies" else (blob, blob, box, pole, body)
    for _ in range(int(random.integers(least, most + 1))):
        canvas.add(shapes[random.integers(len(shapes))](random, size))
    return canvas.develop()


class _Canvas:
    """A picture being painted from back to front."""

    def __init__(self, random: Random, size: Size, partition: Int[np.ndarray, "H W"]) -> None:
        self.random, self.size = random, size
        self.truth = partition.astype(np.int32)
        self.count = 0
        self.bases: list[np.ndarray] = []
        self.image = np.zeros((*size, 3), np.float32)
        softness = random.uniform(0.5, 1.5)
        for segment in np.unique(partition):  # a cell may have been squeezed out
            self._paint(partition == segment, softness, replace=self.count == 0)
        if random.random() < 0.25:  # a background out of focus
            self.image = ndimage.gaussian_filter(self.image, (random.uniform(1, 4),) * 2 + (0,))

    def _material(self, size: Size, relief: float) -> Float[np.ndarray, "H W 3"]:
        """A new surface, one time in four in a colour like an existing one."""
        base = colour(self.random)
        if self.bases and self.random.random() < 0.25:
            base = near(self.random, self.bases[self.random.integers(len(self.bases))], 0.25)
        self.bases.append(base)
        lit: np.ndarray = surface(self.random, size, base) * _lighting(self.random, size, relief)
        return lit

    def _paint(
        self, mask: Bool[np.ndarray, "H W"], softness: float, replace: bool = False, bulge: bool = False
    ) -> None:
        """Paint a new material inside a mask, with a soft edge; only the mask's surroundings are computed."""
        where = (slice(None), slice(None)) if replace else _surroundings(mask)
        part = mask[where]
        paint = self._material(part.shape, 0.2)
        if bulge:
            paint = paint * _roundness(self.random, part)
        cover = 1.0 if replace else ndimage.gaussian_filter(part.astype(np.float32), softness)[..., None]
        self.image[where] += cover * (paint - self.image[where])
        self.truth[mask] = self.count
        self.count += 1

    def add(self, mask: Bool[np.ndarray, "H W"]) -> None:
        """Paint an object over the picture, shaded as round, sometimes with its shadow."""
        if mask.mean() < MIN_SHARE:
            return
        if self.random.random() < 0.3:
            self._cast_shadow(mask)
        self._paint(mask, self.random.uniform(0.4, 1.3), bulge=True)

    def _cast_shadow(self, mask: Bool[np.ndarray, "H W"]) -> None:
        shift = self.random.normal(0, 0.05 * min(self.size), 2)
        shadow = ndimage.gaussian_filter(np.roll(mask, shift.astype(int), (0, 1)).astype(np.float32), 5)
        self.image *= 1 - (self.random.uniform(0.2, 0.6) * shadow)[..., None]

    def develop(self) -> Scene:
        """Simulate the camera: light, tone curve, sensor noise, JPEG."""
        random = self.random
        image = self.image * _lighting(random, self.size, 0.2) * _vignette(random, self.size)
        curve = 255 * np.linspace(0, 1, 1025) ** random.uniform(0.75, 1.4)
        image = curve.astype(np.float32)[(image * (1024 / 255)).clip(0, 1024).astype(np.int16)]
        image = image + random.standard_normal(image.shape, dtype=np.float32) * random.choice([0.0, 1.0, 3.0, 7.0])
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        if random.random() < 0.5:
            pixels = _compress(pixels, int(random.integers(55, 95)))
        return Scene(pixels, _contiguous(self.truth))


def _surroundings(mask: Bool[np.ndarray, "H W"], margin: int = 6) -> tuple[slice, slice]:
    """The bounding box of a mask with a margin."""
    ranges = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis))
        ranges.append(slice(max(0, inside[0] - margin), inside[-1] + 1 + margin))
    return ranges[0], ranges[1]


def _lighting(random: Random, size: Size, amount: float) -> Float[np.ndarray, "H W 1"]:
    """Slow changes of brightness: a ramp and a soft cloud."""
    ramp = np.linspace(-1, 1, 4) * random.normal(0, 0.7, (2, 1))
    coarse = (ramp[0] + ramp[1][:, None] + 0.5 * random.standard_normal((4, 4))).astype(np.float32)
    smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    light: np.ndarray = np.exp(amount * random.random() * np.asarray(smooth))[..., None]
    return light


def _vignette(random: Random, size: Size) -> Float[np.ndarray, "H W 1"]:
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j].astype(np.float32)
    light: np.ndarray = (1 - random.choice([0.0, 0.0, 0.3]) * random.random() * (x * x + y * y) / 2)[..., None]
    return light


def _roundness(random: Random, mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 1"]:
    """Shading of a body that bulges towards the viewer, lit from one side."""
    height = ndimage.gaussian_filter(mask.astype(np.float32), 0.15 * np.sqrt(mask.sum()) + 1)
    slope_y, slope_x = np.gradient(height * np.sqrt(mask.sum()) * 0.5)
    angle = random.uniform(0, 2 * np.pi)
    light = slope_x * np.cos(angle) + slope_y * np.sin(angle)
    return np.asarray(np.exp(np.clip(random.uniform(0, 1.5) * light, -0.8, 0.8))[..., None], np.float32)


def _compress(pixels: UInt8[np.ndarray, "H W 3"], quality: int) -> UInt8[np.ndarray, "H W 3"]:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _contiguous(truth: Int32[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Ids from 0 without gaps; remnants of segments after occlusion are merged into the nearest segment."""
    areas = np.bincount(truth.ravel())
    remnants = (areas < MIN_SHARE * truth.size)[truth]
    if remnants.any():
        nearest = ndimage.distance_transform_edt(remnants, return_distances=False, return_indices=True)
        truth = truth[tuple(nearest)]
    ids = np.cumsum(np.bincount(truth.ravel()) > 0) - 1
    return np.asarray(ids[truth], np.int32)
