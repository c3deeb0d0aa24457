"""Decoding of images: encoded bytes become 8-bit RGB pixels.

The result is what a viewer shows: upright, first frame, alpha over white, however broken the metadata are. Images with
missing pixels, or transparent all over, are refused with a reason. Only formats of a fixed list are opened, and nothing
is decoded before its size in pixels is known. Numbers of more than 8 bits have no standard white: it is the end of the
smallest usual range that holds the image's.
"""

import io
import logging
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from pipeline.inputs.mending import MetadataBomb, has_end, mend
from pipeline.records import MAX_PIXELS, MAX_SIDE, READER

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_RECORDED = 2**31 - 1  # pixels of a side that a row can hold
MAX_BYTES = 256 << 20  # of an encoded image; twice what MAX_PIXELS of noise take as JPEG

# By EXIF orientation. Not ImageOps.exif_transpose: it writes the metadata anew, which fails for some that can be read,
# and does not tell whether the sides were exchanged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # checked here, before decoding, with a reason of our own
ImageFile.LOAD_TRUNCATED_IMAGES = False
logger = logging.getLogger(__name__)


class UndecodableImage(ValueError):
    """Bytes that cannot be decoded. reason: a row's status; size: (width, height) where the header has a possible one:
    some formats can hold numbers that are negative, or larger than any image.
    """

    def __init__(self, reason: str, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.size = size if size and all(0 <= side <= MAX_RECORDED for side in size) else None


def decode(data: bytes, reader: int = READER) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3], upright. reader: see `records.READER`.

    Raises UndecodableImage.
    """
    return decode_reduced(data, None, reader)[0]


def decode_reduced(data: bytes, least: int | None, reader: int = READER) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image whose longer side needs no more than `least` pixels; also its own (width, height), upright.

    A JPEG is decoded at a half, a quarter or an eighth where that leaves at least as many: a 12-megapixel photo in a
    fraction of the time and memory. Everything else, and where least is None, comes whole. Raises UndecodableImage.
    """
    if not data:
        raise UndecodableImage("undecodable", "an empty file")
    if len(data) > MAX_BYTES:
        raise UndecodableImage("too_large", f"{len(data)} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless oddities in metadata
        try:
            return _upright(data, least, reader)
        except UndecodableImage as error:
            mendable = reader > 1 and error.reason == "undecodable"
            if mendable and (whole := _decode_mended(data, least, error)):
                return whole
            raise


def _decode_mended(
    data: bytes, least: int | None, fault: UndecodableImage
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decode an image whose pixels are complete, though its metadata is broken or its end mark missing."""
    try:
        versions = [_upright(version, least, READER) for version in mend(data)]
    except UndecodableImage:
        return None
    except MetadataBomb as error:
        raise UndecodableImage("undecodable", str(error), fault.size) from error
    whole = versions and all(np.array_equal(pixels, versions[0][0]) for pixels, _ in versions)
    return versions[0] if whole else None


def _upright(data: bytes, least: int | None, reader: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Upright pixels and size."""
    image, (width, height), deep = _load(data, least, reader)
    try:
        seen = rgb_reader_1(image) if reader == 1 else rgb(image, deep=deep)
    except NothingVisible as error:
        raise UndecodableImage("undecodable", f"nothing to see: {error}", (width, height)) from error
    turn = _turn(image)
    turned = seen if turn is None else seen.transpose(turn)
    return np.asarray(turned), (height, width) if turn in _ON_SIDE else (width, height)


def _load(data: bytes, least: int | None, reader: int) -> tuple[Image.Image, tuple[int, int], bool]:
    """The first frame, decoded, its size before any reduction, and whether its colours had 16 bits."""
    size: tuple[int, int] | None = None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = image.size
        if image.width * image.height > MAX_PIXELS or max(size) > MAX_SIDE:
            raise UndecodableImage("too_large", f"{image.width} x {image.height} pixels", size)
        jpeg = image.format == "JPEG" or (image.format == "MPO" and reader > 1)  # of MPO the first picture is decoded
        deep = is_deep(image)
        if least and jpeg and max(size) > least:
            image.draft(None, (-(-size[0] * least // max(size)), -(-size[1] * least // max(size))))
        image.load()
        if jpeg and reader > 1 and not has_end(data):
            raise UndecodableImage("undecodable", "the end of the image is missing", size)
        if image.format == "TIFF" and reader > 1:
            size = image.size  # turned upright by then
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        possible = ", ".join(FORMATS)
        raise UndecodableImage("undecodable", f"no image of a kind that is opened here ({possible})") from error
    except Exception as error:
        # Nothing but Pillow runs above, and on damaged bytes its decoders raise whatever they trip over.
        raise UndecodableImage("undecodable", f"{type(error).__name__}: {error}"[:300], size) from error
    if 0 in image.size:
        raise UndecodableImage("undecodable", f"no pixels: {image.width} x {image.height}", size)
    return image, size, deep


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that EXIF asks for; None where EXIF is damaged, as in viewers."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # noqa: BLE001 - Pillow alone runs above, and metadata can break in any way
        logger.debug("EXIF is passed over: %s: %s", type(error).__name__, error)
        return None


def extension_of(data: bytes) -> str:
    """The usual extension of an encoded image that `decode` takes."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = str(image.format).lower()
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(kind, kind)


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
