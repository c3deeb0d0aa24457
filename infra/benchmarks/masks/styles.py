"""Sets of images with truth, on which masks are measured: photos, the same photos in other styles, scenes, nuclei.

A style changes the picture and keeps the truth, so that figures of two styles differ by the style alone. It is drawn
with seeds of its own: the same pixels on every machine with the same numpy, scipy and scikit-image.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, median_filter

sys.path.insert(0, str(Path(__file__).parents[3]))

from infra.scenes.scene import benchmark
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.evaluation.score import LeftOut, decode_truths, or_reason
from pipeline.evaluation.truth import open_truth
from pipeline.inputs.decode import decode

SCENES = 200
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601)
GAMMA = 2.2
DIM = 0.01  # of the light of the photo
ELECTRONS = 4000.0  # of a white pixel in full light: 40 are left of them in low light
READ_NOISE = 3.0  # electrons


@dataclass(frozen=True)
class Sample:
    """One image: uint8 [H, W, 3], and a label map [H, W] an annotator."""

    key: str
    image: np.ndarray
    truths: list[np.ndarray]


def grey(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """No colours: the luminance in all three channels."""
    return np.repeat((image @ LUMINANCE).round().astype(np.uint8)[..., None], 3, axis=2)


def sketch(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Dark lines on white: the luminance divided by its blur, as pencil filters of photo editors have it."""
    light = gaussian_filter(image @ LUMINANCE, 0.8)
    lines = np.clip((light + 8) / (gaussian_filter(light, 6) + 8), 0, 1) ** 3
    return np.repeat((255 * lines).round().astype(np.uint8)[..., None], 3, axis=2)


def painting(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Flat patches of few colours: a median over 9 pixels, then 5 levels a channel."""
    flat = median_filter(image, size=(9, 9, 1)).astype(float)
    return ((flat / 255 * 4).round() / 4 * 255).round().astype(np.uint8)


def low_light(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shot and read noise of a camera at a hundredth of the light, brightened to half the mean of the photo."""
    linear = (image / 255.0) ** GAMMA
    electrons = random.poisson(linear * DIM * ELECTRONS) + random.normal(0, READ_NOISE, image.shape)
    seen = np.clip(electrons / (DIM * ELECTRONS), 0, 1) ** (1 / GAMMA)
    return np.clip(seen / max(seen.mean(), 1e-3) * image.mean() / 2, 0, 255).round().astype(np.uint8)


def false_colour(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The luminance from blue through green and yellow to red, as thermal cameras show heat."""
    share = (image @ LUMINANCE)[..., None] / 255
    rainbow = np.clip(1.5 - np.abs(4 * share - np.array([3, 2, 1])), 0, 1)
    return (255 * rainbow).round().astype(np.uint8)


STYLES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "sketch": sketch,
    "painting": painting,
    "grey": grey,
    "low-light": low_light,
    "false-colour": false_colour,
}
NUCLEI = {"nuclei-2d": "2d", "nuclei-3d": "3d"}
SETS = ("photos", *STYLES, "scenes", *NUCLEI)


def samples(name: str, photos: str) -> Iterator[Sample]:
    """The images of a set. photos: shards of `KEY.jpg` with `KEY.seg{i}.png`, for `photos` and its styles."""
    if name == "scenes":
        yield from (Sample(f"{i:04d}", each.image, [each.truth]) for i, each in enumerate(benchmark(SCENES)))
    elif name in NUCLEI:
        yield from nuclei(NUCLEI[name])
    else:
        rules = PROTOCOLS["regions"]
        for sample in open_truth(photos, rules):
            truths = or_reason(decode_truths, sample, rules)
            if isinstance(truths, LeftOut) or sample.image is None:
                raise ValueError(f"{photos}: {sample.key}: {truths if isinstance(truths, LeftOut) else 'no photo'}")
            image = decode(sample.image)
            if name in STYLES:
                image = STYLES[name](image, np.random.default_rng(zlib.crc32(sample.key.encode())))
            yield Sample(sample.key, image, truths)


def nuclei(kind: str) -> Iterator[Sample]:
    """Nuclei under a microscope, from the wheel of `stardist`, read as data: nothing of it is imported.

    kind: "2d", one picture of 512 x 512 in four quarters; "3d", the slices of one stack of 31 x 61 x 57.
    """
    folder = "stardist/data/images"
    image, truth = (_stack(f"{folder}/{part}{kind}.tif") for part in ("img", "mask"))
    dark, bright = np.percentile(image, (1, 99.8))
    shown = (np.clip((image - dark) / (bright - dark), 0, 1) * 255).round().astype(np.uint8)
    if kind == "2d":
        side = shown.shape[1] // 2
        shown, truth = (
            np.stack([x[0, i:, j:][:side, :side] for i in (0, side) for j in (0, side)]) for x in (shown, truth)
        )
    for i, (plane, regions) in enumerate(zip(shown, truth, strict=True)):
        yield Sample(f"{kind}-{i:02d}", np.repeat(plane[..., None], 3, axis=2), [regions.astype(np.int64)])


def _stack(name: str) -> np.ndarray:
    """Every page of a TIFF in an installed package, [pages, H, W]."""
    with Image.open(str(distribution("stardist").locate_file(name))) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages.append(np.asarray(image).astype(np.int64))
    return np.stack(pages)
