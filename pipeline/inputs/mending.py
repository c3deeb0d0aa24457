"""Mending of encoded images that do not open although their pixels are complete.

Metadata that does not change how a picture looks is removed, whatever is wrong with it; a missing end mark is added.
This module does not decode: `decode` opens the result, and refuses it where pixels are missing after all.
"""

import random
import re
import struct
import zlib
from collections.abc import Iterator

MOST_TEXT = 32 << 20  # bytes that compressed metadata may inflate to; more is a bomb, though it is not inflated here
JPEG_START, JPEG_END, JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
ROOM = 16  # zeros at an end that were reserved for a file before it arrived, and are not part of it
ADOBE, JFIF, EXIF = 14, 16, 8  # bytes that these segments have at least, with their length
NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # chunks that every PNG needs
TRANSPARENT = {0: {2}, 2: {6}, 3: set(range(1, 257))}  # bytes of tRNS, by the colour type of a PNG
FRAMES = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}  # chunks of a WebP that hold pixels
NO_METADATA = ~0x2C  # of the flags of a WebP: neither a colour profile nor Exif nor XMP


class MetadataBomb(ValueError):
    """Metadata that would fill the memory of a program that reads it."""


def mend(data: bytes) -> tuple[bytes, ...]:
    """Mended versions of an image, which decode to equal pixels if its pixels are complete; none where that fails.

    Raises MetadataBomb.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(JPEG_START):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):  # JPEG 2000, whose decoder finds missing data itself
        return (data.removesuffix(b"\xff") + JPEG_END,)
    return ()


def has_end(data: bytes) -> bool:
    """Whether a JPEG has an end mark after its pixels; without it, missing pixels may be decoded as grey ones."""
    return data.endswith(JPEG_END) or 0 < _pixels_of(data) < data.rfind(JPEG_END)


def _png(data: bytes) -> tuple[bytes, ...]:
    kept, text, colour = [data[:8]], 0, int.from_bytes(data[25:26])
    for name, body, end in _png_chunks(data):
        chunk = data[end - len(body) - 12 : end]
        sound = len(chunk) == len(body) + 12 and zlib.crc32(name + body) == struct.unpack(">I", chunk[-4:])[0]
        if name in (b"zTXt", b"iTXt", b"iCCP"):
            text += _inflated(name, body)
            if text > MOST_TEXT:
                raise MetadataBomb(f"its metadata inflates to more than {MOST_TEXT >> 20} MB")
        fits = name == b"eXIf" or (name == b"tRNS" and len(body) in TRANSPARENT.get(colour, ()))
        if name in NEEDED or (fits and sound):
            kept.append(chunk)
    return (b"".join(kept),)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, content and end of each chunk; the last may be cut."""
    at, name = 8, b""
    while at + 8 <= len(data) and name != b"IEND":
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        at += 12 + size
        yield name, body, at - size + len(body)


def _inflated(name: bytes, body: bytes) -> int:
    """Bytes that a compressed chunk of text or a colour profile becomes, counted up to a little beyond the limit."""
    _, _, rest = body.partition(b"\0")
    packed = rest[1:]
    if name == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    try:
        return len(zlib.decompressobj().decompress(packed, MOST_TEXT + 1))
    except zlib.error:
        return 0


def _jpeg(data: bytes) -> tuple[bytes, ...]:
    """Two versions with noise and without behind the last byte: where pixels were missing, noise would make some."""
    head, components, begin = bytearray(JPEG_START), b"", _pixels_of(data)
    if begin < 0:
        return ()
    for marker, body, _ in _jpeg_segments(data):
        kept = 0xC0 <= marker <= 0xCF or 0xDB <= marker <= 0xDF
        kept |= marker == 0xE0 and body[2:7] == b"JFIF\0" and len(body) >= JFIF
        kept |= marker == 0xE1 and body[2:8] == b"Exif\0\0" and len(body) > EXIF
        kept |= marker == 0xEE and body[2:7] == b"Adobe" and len(body) >= ADOBE
        if kept:
            head += bytes((0xFF, marker)) + body
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = body[8::3]
    scans = data[begin:]
    if not has_end(data):
        if scans.endswith(bytes(ROOM)):
            scans = scans.rstrip(b"\0")
        scans = scans.removesuffix(b"\xff")  # half an end mark
        if not _is_refined(scans, components):
            return ()
    return bytes(head) + scans + JPEG_END, bytes(head) + scans + _noise() + JPEG_END


def _pixels_of(data: bytes) -> int:
    """Where the first scan of a JPEG begins; -1 where there is none."""
    *_, end = (2, *(end for _, _, end in _jpeg_segments(data)))
    return data.find(JPEG_SCAN, end)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content (its length first) and end of each segment before the pixels; what lies between is left out."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, (size,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        if marker == JPEG_SCAN[1]:
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9 or size < 2:
            at += 1
            continue
        yield marker, data[at + 2 : at + 2 + size], at + 2 + size
        at += 2 + size


def _is_refined(scans: bytes, components: bytes) -> bool:
    """Whether every coefficient was brought to its last bit: a progressive JPEG may end after any of its scans."""
    left: dict[tuple[int, int], int] = {}  # bits yet to come, by component and coefficient
    for match in re.finditer(JPEG_SCAN + rb"..(.)", scans, re.DOTALL):
        count, at = match[1][0], match.end()
        parts, band = scans[at : at + 2 * count : 2], scans[at + 2 * count : at + 2 * count + 3]
        if len(band) == 3:
            left |= {(part, index): band[2] & 15 for part in parts for index in range(band[0], band[1] + 1)}
    return all(left.get((part, index)) == 0 for part in components for index in range(64))


def _noise() -> bytes:
    """What decodes to some pixels wherever it is read, restart marks included."""
    source = random.Random(0)
    pieces = (source.randbytes(512).replace(b"\xff", b"\x55") + bytes((0xFF, 0xD0 + n % 8)) for n in range(32))
    return b"".join(pieces)


def _webp(data: bytes) -> tuple[bytes, ...]:
    kept, at = [], 12
    while at + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[at : at + 8])
        whole = data[at : at + 8 + size + size % 2]
        if name in FRAMES and len(whole) < 8 + size:
            return ()
        if name == b"VP8X":
            whole = whole[:8] + bytes(flags & NO_METADATA for flags in whole[8:9]) + whole[9:]
        kept += [whole] if name in FRAMES else []
        at += 8 + size + size % 2
    body = b"WEBP" + b"".join(kept)
    return (b"RIFF" + struct.pack("<I", len(body)) + body,)
