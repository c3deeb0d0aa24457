"""Drawing of label maps: a palette, overlays on the photo, outlines. No torch.

Each colour of the palette is as far as possible from all before it, for the kind of colour vision that distinguishes
them least: `infra/docs/palette.py` computes it.
"""

import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from diffseg.types import IGNORE, Bool, Int, UInt8

PALETTE_SIZE = 64  # further ids start again: people cannot distinguish more colours than this
IGNORED = (128, 128, 128)  # a grey that no segment has

_COLORS = bytes.fromhex(
    "0072b2 e69f00 009e73 cc79a7 d55e00 56b4e9 f0e442 742e17 8bffe8 004674 a2d1a2 a2462e 8b8bff 74d1ff "
    "7417a2 8bb98b 4646d1 745d8b b9e8a2 d1d15d 7474e8 ff74d1 e8742e ffb9d1 8b5d5d 744646 b95d46 b9ff8b "
    "b974d1 d1b95d 5d2e5d 00e8e8 8ba25d 74468b 745dd1 e8a2b9 a25d00 005d5d b9745d 462eb9 462e8b 5da2b9 "
    "b946b9 467474 a274a2 b95dd1 d1e874 a2a2d1 5dd174 a246a2 5d46b9 8ba2ff a2ffb9 741774 e88b2e 8b4600 "
    "e8468b a2175d e8b900 e8d1ff 178b46 8b2e2e 8bb9ff d18ba2"
)


def palette(count: int = PALETTE_SIZE) -> UInt8[np.ndarray, "count 3"]:
    """sRGB colours of the ids 0..count-1, the first ones furthest apart; from id 64 on they repeat."""
    return np.frombuffer(_COLORS, np.uint8).reshape(-1, 3)[np.arange(count) % PALETTE_SIZE]


def colorize(label_map: Int[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Colour every segment; ignored pixels are grey."""
    count = int(label_map.max(initial=0)) + 1
    table = np.concatenate([palette(count), np.array([IGNORED], np.uint8)])
    return table[np.where(label_map == IGNORE, count, label_map)]


def outlines(label_map: Int[np.ndarray, "H W"], width: int = 1) -> Bool[np.ndarray, "H W"]:
    """True on pixels within `width` of another segment, on one side of each border at width 1, on both beyond."""
    edge = np.zeros(label_map.shape, dtype=np.bool_)
    edge[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    edge[:-1] |= label_map[:-1] != label_map[1:]
    return ndimage.binary_dilation(edge, iterations=width - 1) if width > 1 else edge


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of a kind that Pillow knows, PNG or JPEG. options: see its `save`."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def resize_labels(label_map: Int[np.ndarray, "H W"], size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """Resize a label map to (height, width) in pixels: each pixel takes the id under its centre."""
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(size, label_map.shape, strict=True)
    )
    resized: np.ndarray = label_map[rows[:, None], columns[None, :]]
    return resized


def overlay(
    image: UInt8[np.ndarray, "H W 3"], label_map: Int[np.ndarray, "h w"], *, opacity: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """Tint and outline the segments of a photo, at the photo's own resolution.

    opacity: of the tint, 0..1. Ignored pixels keep their colour.
    """
    labels = resize_labels(label_map, image.shape[:2])
    tint = np.where(labels == IGNORE, 0.0, opacity)[..., None]
    mixed = image * (1 - tint) + colorize(labels) * tint
    width = max(1, round(max(labels.shape) / 512))
    mixed[outlines(labels, width)] = 255
    return np.asarray(mixed + 0.5, np.uint8)
