"""Geometry: where an image's pixels lie in the model's input, and where the model's output lies in the image.

Sizes are (height, width), boxes (top, left, height, width), in pixels.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffseg.config import ResolvedConfig
from diffseg.types import Float, Integer, UInt8

ASPECT = 4.0  # beyond it an image is squeezed: the short side of a strip would have too few cells

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Place = tuple[int, int]  # of a crop among those of its image: row and column

PLACES: tuple[Place, ...] = tuple((row, column) for row in range(3) for column in range(3))


@dataclass(frozen=True, slots=True)
class Frame:
    """How one image is mapped to the model's input and output.

    model: size of the model's input.
    crop: the part of the source that the model sees.
    output: size of the label map.
    window: that part in the label map; the rest of the map is the ignore id.
    antialias: average over the pixels a model pixel covers; the published method takes the four nearest instead.
    """

    source: Size
    crop: Box
    model: Size
    output: Size
    window: Box
    antialias: bool


def frame(size: Size, config: ResolvedConfig) -> Frame:
    """Plan one image.

    `paper` takes the centre square, `fast` the whole image with an area of about `image_size` squared.
    """
    if min(size) < 1:
        raise ValueError(f"an image needs at least one pixel, got height x width {size}")
    output = output_size(size, config)
    if config.mode == "paper":
        model = (config.image_size, config.image_size)
        return Frame(size, _centre_square(size), model, output, _centre_square(output), antialias=False)
    model = model_size(size, config.image_size, config.unit)
    return Frame(size, (0, 0, *size), model, output, (0, 0, *output), antialias=True)


def crop_of(planned: Frame, place: Place) -> Frame:
    """One of the crops of an image that the model sees whole: at twice the scale, for its input is the image's."""
    crop, window = window_of(planned.source, place), window_of(planned.output, place)
    return replace(planned, crop=crop, window=window)


def window_of(size: Size, place: Place) -> Box:
    """Where a crop lies: it has half the sides, and the next one begins a quarter farther."""
    height, width = (-(-side // 2) for side in size)
    top, left = ((side - part) * at // 2 for side, part, at in zip(size, (height, width), place, strict=True))
    return top, left, height, width


def output_size(size: Size, config: ResolvedConfig) -> Size:
    """The longer side at most `output_size`, the aspect kept, never above the source."""
    if config.output_size == "source" or max(size) <= config.output_size:
        return size
    scale = config.output_size / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def model_size(size: Size, image_size: int, unit: int) -> Size:
    """Sides that are multiples of the model's unit with about the area and the aspect asked for.

    A distorted aspect costs twice what an equally wrong area costs: area is only detail, aspect is shape.
    """
    aspect = min(max(size[1] / size[0], 1 / ASPECT), ASPECT)
    height, width = image_size / math.sqrt(aspect), image_size * math.sqrt(aspect)

    def cost(candidate: Size) -> float:
        h, w = candidate
        return 2 * abs(math.log(w / h / aspect)) + abs(math.log(h * w / (height * width)))

    return min(((h, w) for h in _multiples(height, unit) for w in _multiples(width, unit)), key=cost)


def to_model(image: np.ndarray, frame: Frame) -> Float[Tensor, "3 H W"]:
    """Bring a uint8 [H, W, 3] image to the model's input, in [-1, 1]. Raises what `to_input` does."""
    return normed(to_input(image, frame)[None])[0]


def to_input(image: np.ndarray, frame: Frame) -> UInt8[Tensor, "H W 3"] | Float[Tensor, "H W 3"]:
    """Bring a uint8 [H, W, 3] image to the size of the model's input: uint8, or float32 without antialias.

    Raises ValueError for another shape or type than the frame was made for.
    """
    if image.dtype != np.uint8 or image.shape != (*frame.source, 3):
        raise ValueError(f"expected a uint8 image {(*frame.source, 3)}, got {image.dtype} {image.shape}")
    top, left, height, width = frame.crop
    part = image[top : top + height, left : left + width]
    return _average(part, frame.model) if frame.antialias else _sample(part, frame.model)


def normed(pixels: UInt8[Tensor, "B H W 3"] | Float[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Pixels in [-1, 1], on whatever device they are; on a GPU the channels stay innermost, as convolutions want."""
    moved = pixels.permute(0, 3, 1, 2)
    return (moved if moved.is_cuda else moved.contiguous()).float().div(127.5).sub_(1)


def to_output(image: UInt8[np.ndarray, "_ _ 3"], frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
    """Bring an image that the model sees whole to the size of its label map."""
    return image if frame.source == frame.output else _average(image, frame.output).numpy()


def _multiples(length: float, unit: int) -> tuple[int, int]:
    below = max(unit, int(length) // unit * unit)
    return below, below + unit


def _centre_square(size: Size) -> Box:
    side = min(size)
    return (size[0] - side) // 2, (size[1] - side) // 2, side, side


def _average(image: np.ndarray, size: Size) -> Integer[Tensor, "H W 3"]:
    """Triangle filter as wide as a target pixel, in integers: equal bytes on every processor."""
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def _sample(image: np.ndarray, size: Size) -> Float[Tensor, "H W 3"]:
    """Bilinear with half-pixel centres and no antialias.

    Only the pixels that count are gathered: a photo of 48 megapixels would take 576 MB as float32.
    """
    above, below, down = _neighbours(image.shape[0], size[0])
    before, after, right = _neighbours(image.shape[1], size[1])

    def row(y: np.ndarray) -> np.ndarray:
        lines = image[y]
        blended: np.ndarray = lines[:, before] * (1 - right[:, None]) + lines[:, after] * right[:, None]
        return blended

    return torch.from_numpy(row(above) * (1 - down[:, None, None]) + row(below) * down[:, None, None])


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target pixel the source pixels around its centre and the share of the second, edges clamped."""
    centre = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0)
    first = np.minimum(centre.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), (centre - first).astype(np.float32)
