"""Decoding of images: encoded bytes become 8-bit RGB pixels.

The result is what a viewer shows: upright, first frame, alpha over white, however broken the metadata are. Images with
missing pixels, or transparent all over, are refused with a reason. Only formats of a fixed list are opened, and nothing
is decoded before its size in pixels is known.
"""

import io
import logging
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.inputs.mending import MetadataBomb, has_end, mend
from pipeline.inputs.modes import NothingVisible, is_deep, rgb, rgb_reader_1
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
