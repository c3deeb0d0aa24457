"""The decoder of version 0.1.0, word for word: what runs that it began go on to see."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.inputs.decode import UndecodableImage

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's own bomb limit: 512 MiB of RGB
MAX_SIDE = 65_535  # JPEG's; a longer side is an attack or a mistake
MOST_TOLD = 2**31 - 1  # pixels of a side that a row can hold
MAX_BYTES = 256 << 20  # of an encoded image; twice what MAX_PIXELS of noise take as JPEG

_TURNS = {  # by EXIF orientation
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


def decode(data: bytes) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3], upright.

    Raises UndecodableImage.
    """
    return decode_reduced(data, None)[0]


def decode_reduced(data: bytes, least: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """An image of whose longer side no more than `least` pixels are wanted, and its own (width, height), upright.

    A JPEG is decoded at a half, a quarter or an eighth where that leaves at least as many: a 12-megapixel photo in a
    fraction of the time and memory. Everything else, and where least is None, comes whole. Raises UndecodableImage.
    """
    if not data:
        raise UndecodableImage("undecodable", "an empty file")
    if len(data) > MAX_BYTES:
        raise UndecodableImage("too_large", f"{len(data)} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless oddities in metadata
        image, (width, height) = _load(data, least)
        turn = _turn(image)
        upright = image if turn is None else image.transpose(turn)
        return np.asarray(_rgb(upright)), (height, width) if turn in _ON_SIDE else (width, height)


def _load(data: bytes, least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame, decoded, and its size before any reduction."""
    size: tuple[int, int] | None = None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = image.size
        if image.width * image.height > MAX_PIXELS or max(size) > MAX_SIDE:
            raise UndecodableImage("too_large", f"{image.width} x {image.height} pixels", size)
        if least and image.format == "JPEG" and max(size) > least:
            image.draft(None, (-(-size[0] * least // max(size)), -(-size[1] * least // max(size))))
        image.load()
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
    return image, size


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings it upright, as EXIF says it was held; nothing where EXIF is damaged, as viewers do."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow alone runs above, and metadata can break in any way
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64).clip(0, 65_535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        cut_out = image.convert("RGBA")
        white = Image.new("RGBA", cut_out.size, "white")
        return Image.alpha_composite(white, cut_out).convert("RGB")
    return image.convert("RGB")
