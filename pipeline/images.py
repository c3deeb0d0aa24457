"""Bytes to pixels and label maps to bytes.

Decoding shows what a viewer shows: upright, first frame, alpha over white, 16 bit and CMYK brought to 8-bit RGB.
Only formats of a fixed list are opened, and nothing is decoded before its size in pixels is known.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps

from diffseg.types import IGNORE

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's own bomb limit: 512 MiB of RGB
MAX_SIDE = 65_535  # JPEG's; a longer side is an attack or a mistake

Image.MAX_IMAGE_PIXELS = None  # checked here, before decoding, with a reason of our own
ImageFile.LOAD_TRUNCATED_IMAGES = False


class UndecodableImage(ValueError):
    """Bytes that are no image to us. reason: a row's status; size: (width, height) where the header told it."""

    def __init__(self, reason: str, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.size = size


def decode(data: bytes) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3], upright.

    Raises UndecodableImage.
    """
    size: tuple[int, int] | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of harmless oddities in metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                size = image.size
                if image.width * image.height > MAX_PIXELS or max(size) > MAX_SIDE:
                    raise UndecodableImage("too_large", f"{image.width} x {image.height} pixels", size)
                image.seek(0)
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_rgb(upright))
    except UndecodableImage:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError, OverflowError) as error:
        # what Pillow's decoders raise on damaged bytes
        raise UndecodableImage("undecodable", f"{type(error).__name__}: {error}"[:300], size) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64).clip(0, 65_535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        cut_out = image.convert("RGBA")
        white = Image.new("RGBA", cut_out.size, "white")
        return Image.alpha_composite(white, cut_out).convert("RGB")
    return image.convert("RGB")


def encode_label_map(label_map: np.ndarray) -> bytes:
    """A label map as PNG: 8 bit up to 255 segments, else 16; IGNORE becomes 255 or 65535.

    Raises ValueError for ids that 16 bit cannot hold.
    """
    top = int(label_map.max(initial=0))
    if top >= 65_535:
        raise ValueError(f"a label map holds at most 65535 segments, got id {top}")
    dtype, ignore = (np.uint8, 255) if top < 255 else (np.uint16, 65_535)
    pixels = np.where(label_map == IGNORE, ignore, label_map).astype(dtype)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_label_map(data: bytes) -> np.ndarray:
    """The inverse of `encode_label_map`: int32 [H, W] with IGNORE = -1."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        pixels = np.asarray(image)
    ignore = 255 if pixels.dtype == np.uint8 else 65_535
    labels = pixels.astype(np.int32)
    return np.where(labels == ignore, np.int32(IGNORE), labels)
