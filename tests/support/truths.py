"""Small data sets with truth, laid out by the tests that read them."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def png(values: object, mode: str | None = None) -> bytes:
    """Whole numbers as a PNG, of 16 bits where they came as such. mode: of Pillow, to have the image in another."""
    pixels = np.asarray(values)
    image = Image.fromarray(pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint8))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def lay(folder: Path, files: Mapping[str, bytes]) -> str:
    """Files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)
