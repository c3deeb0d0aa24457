"""Pixel modes: the output of Pillow's decoders as 8-bit RGB, and the rules that runs of version 0.1.0 keep.

Numbers of more than 8 bits have no standard white: it is the end of the smallest usual range that holds the image's.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

RANGES = (1, 255, 1023, 4095, 16_383, 65_535)  # floats from 0 to 1, and 8, 10, 12, 14 and 16 bits
FAINT = 16  # images whose maximum exceeds 1 by little are in none of these ranges
OUTLIERS = (0.5, 99.5)  # percentiles between which numbers of no usual range are stretched
DARK = 16  # of 256: 16-bit colours that are all below it are lost, since only the high 8 bits are decoded


class NothingVisible(ValueError):
    """All pixels are transparent, or their values lie in bits that are not decoded."""


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image, not decoded yet, has 16-bit colours, of which the decoder keeps 8."""
    read_as = [tile.args for tile in image.tile]
    if image.format == "PPM":
        return read_as == [("RGB", 65_535)]
    return image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA") and ";16" in str(read_as)


def rgb(image: Image.Image, *, deep: bool) -> Image.Image:
    """An image over white, as 8-bit RGB. deep: its colours had 16 bits. Raises NothingVisible."""
    if deep and np.asarray(image)[..., :3].max() < DARK:
        raise NothingVisible("its 16-bit colours are all in the lowest bits, which are not decoded")
    converted = TABLE.get(image.mode) or ("transparency" in image.info and _over_white)
    return converted(image) if converted else image.convert("RGB")


def rgb_reader_1(image: Image.Image) -> Image.Image:
    """An image over white, as 8-bit RGB, by the rules of reader 1."""
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64).clip(0, 65_535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    cut_out = image.convert("RGBA")
    if cut_out.getchannel("A").getextrema() != (0, 0):
        return _on_white(cut_out)
    if image.format in ("BMP", "DIB"):  # programs leave the fourth byte at 0, and viewers ignore it then
        return cut_out.convert("RGB")
    raise NothingVisible("every pixel is transparent")


def _on_white(cut_out: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", cut_out.size, "white"), cut_out).convert("RGB")


def _wide(image: Image.Image) -> Image.Image:
    """Scale numbers of more than 8 bits; NaN and infinity are black."""
    values, tags = np.asarray(image), image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode == "I" and tags.get(SAMPLEFORMAT, (1,)) in (1, (1,)) and tags:
        values = values.view(np.uint32)  # Pillow has no type for them
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    low, scale = _range(values[finite])
    seen = np.nan_to_num((values - low) * scale, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        seen = np.where(finite, 255 - seen, 0).astype(np.uint8)
    return Image.fromarray(seen).convert("RGB")


def _range(values: np.ndarray) -> tuple[float, float]:
    """The value that is black, and the factor by which white becomes 255."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= RANGES[-1] and not 1 < high <= FAINT:
        most = next(most for most in RANGES if high <= most)
        return 0.0, 255.0 if most == 1 else 256 / (most + 1)
    inner = [float(each) for each in np.percentile(values, OUTLIERS)]
    low, high = inner if inner[0] < inner[1] else (low, high)
    return low, 255 / (high - low) if high > low else 0.0


TABLE: Mapping[str, Callable[[Image.Image], Image.Image]] = {  # the other modes convert as they are
    **dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N", "F"), _wide),
    **dict.fromkeys(("LA", "PA", "RGBA"), _over_white),
    **dict.fromkeys(("La", "RGBa"), lambda image: _over_white(image.convert(image.mode.upper()))),
}
