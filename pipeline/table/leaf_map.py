"""Leaf maps as bytes, and back: run lengths, compressed by LZMA.

HEADER: height and width in pixels, bytes of an id
lengths [n] of 1 byte: pixels in row order that have one leaf; a longer run is several, each of 255 at most
ids [n] of 1 or 2 bytes, little endian: the leaf of each run; void is 255 or 65535
All of it is one stream of the `.lzma` format, which `lzma.decompress` and `xz --format=lzma` read.

Borders of leaves are many and ragged: as PNG the same maps take a third more bytes.
"""

import lzma
import struct

import numpy as np

from diffseg.types import IGNORE, Int32
from pipeline.records import MAX_PIXELS

HEADER = struct.Struct("<IIB")
LONGEST = 255  # pixels of a run
FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "nice_len": 273}]


def encode_leaf_map(leaf_map: Int32[np.ndarray, "H W"]) -> bytes:
    """Encode a leaf map. Raises ValueError for ids that 16 bit cannot hold."""
    top = int(leaf_map.max(initial=0))
    if top >= 65_535:
        raise ValueError(f"a leaf map holds at most 65535 leaves, got id {top}")
    pixels = leaf_map.ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[:1] - 1))
    lengths = np.diff(starts, append=pixels.size)
    pieces = -(-lengths // LONGEST)
    of_piece = np.full(pieces.sum(), LONGEST, np.uint8)
    of_piece[pieces.cumsum() - 1] = lengths - (pieces - 1) * LONGEST
    kind = "<u1" if top < 255 else "<u2"  # IGNORE is -1, which wraps to the highest
    ids = pixels[starts].repeat(pieces).astype(kind)
    header = HEADER.pack(*leaf_map.shape, ids.itemsize)
    return lzma.compress(header + of_piece.tobytes() + ids.tobytes(), lzma.FORMAT_ALONE, filters=FILTERS)


def decode_leaf_map(data: bytes) -> Int32[np.ndarray, "H W"]:
    """Decode a leaf map, IGNORE is -1. No more is decompressed than its size allows.

    Raises ValueError for bytes that are none.
    """
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
        height, width, size = HEADER.unpack(stream.decompress(data, HEADER.size))
        if size not in (1, 2) or not 0 < height * width <= MAX_PIXELS:
            raise ValueError(f"{width} x {height} leaves of {size} bytes")
        runs = stream.decompress(b"", (1 + size) * height * width)
    except (lzma.LZMAError, struct.error, EOFError) as error:
        raise ValueError(str(error)) from error
    count = len(runs) // (1 + size)
    lengths = np.frombuffer(runs, np.uint8, count)
    ids = np.frombuffer(runs, f"<u{size}", count, offset=count)
    if not stream.eof or len(runs) != count * (1 + size) or lengths.sum(dtype=np.int64) != height * width:
        raise ValueError(f"runs of {lengths.sum(dtype=np.int64)} of {width} x {height} pixels")
    labels = np.where(ids == np.iinfo(ids.dtype).max, IGNORE, ids.astype(np.int32))
    return labels.astype(np.int32).repeat(lengths).reshape(height, width)
