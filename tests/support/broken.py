"""Images whose pixels are whole and whose wrapping is not, images of wide numbers, and some that show nothing."""

import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.hostile import BLUE, JPEG, PNG, RED, chunk, cut_out, png, save, split, with_exif

HEAD, BODY = PNG[:33], PNG[33:]  # a PNG's signature and header, and the rest of it
PROGRESSIVE = save(split(), "JPEG", quality=95, progressive=True)
RESTARTED = save(split((64, 48)), "JPEG", quality=95, restart_marker_rows=1)
WEBP = save(split(), "WEBP", lossless=True)
SOFT = save(split(), "WEBP", quality=95)
J2K = save(split(), "JPEG2000")
GIF = save(split(), "GIF")


def segment(marker, body, size=None):
    """Of a JPEG, right behind its start."""
    length = len(body) + 2 if size is None else size
    return JPEG[:2] + bytes((0xFF, marker)) + struct.pack(">H", length) + body + JPEG[2:]


def tag(number, kind, count, value):
    """A block of Exif with one entry."""
    entry = struct.pack("<HHII", number, kind, count, value)
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + entry + bytes(4)


def held(orientation, kind=3):
    return segment(0xE1, tag(0x0112, kind, 1, orientation))


def with_chunk(name, data, crc=None):
    made = chunk(name, data)
    return HEAD + (made if crc is None else made[:-4] + crc) + BODY


def behind(data):
    """A chunk between the pixels of a PNG and its end."""
    return PNG[:-12] + data + PNG[-12:]


def packed(size):
    return zlib.compress(bytes(size))


def rewrapped(webp, size):
    return webp[:4] + struct.pack("<I", size) + webp[8:]


def with_metadata(**more):
    return save(split(), "WEBP", lossless=True, exif=tag(0x0112, 3, 1, 1), xmp=b"<x", icc_profile=b"none", **more)


# name: bytes; red on the left and blue on the right
WHOLE = {
    "jpeg, garbage for Exif": segment(0xE1, b"Exif\0\0" + b"\xde\xad" * 20),
    "jpeg, Exif in a circle": segment(0xE1, tag(0x8769, 4, 1, 8)),
    "jpeg, orientation 99": held(99),
    "jpeg, orientation 0": held(0),
    "jpeg, orientation in words": held(0x66666666, kind=2),
    "jpeg, orientation nowhere": held(1 << 29, kind=5),
    "jpeg, broken XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<"),
    "jpeg, a profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "jpeg, a part of a profile": segment(0xE2, b"ICC_PROFILE\0\x01\x05abc"),
    "jpeg, short JFIF": segment(0xE0, b"JFIF"),
    "jpeg, short Adobe": segment(0xEE, b"Adobe"),
    "jpeg, broken Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\xff\xff"),
    "jpeg, broken list of pictures": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "jpeg, a segment of no length": segment(0xE1, b"", 0),
    "jpeg, garbage between segments": JPEG[:2] + bytes(40) + JPEG[2:],
    "jpeg without its end": JPEG[:-2],
    "jpeg with half its end": JPEG[:-1],
    "jpeg with room for its end": JPEG[:-2] + bytes(4000),
    "progressive jpeg without its end": PROGRESSIVE[:-2],
    "restarting jpeg without its end": RESTARTED[:-2],
    "jpeg without its end, broken profile": segment(0xE2, b"ICC_PROFILE\0")[:-2],
    "jpeg held sideways without its end": with_exif(6)[:-2],
    "png, text of 2 MB": with_chunk(b"zTXt", b"k\0\0" + packed(2 << 20)),
    "png, international text of 2 MB": with_chunk(b"iTXt", b"k\0\1\0\0\0" + packed(2 << 20)),
    "png, text of 2 MB behind": behind(chunk(b"zTXt", b"k\0\0" + packed(2 << 20))),
    "png, plain text of 70 MB": with_chunk(b"tEXt", b"k\0" + bytes(70 << 20)),
    "png, profile of 2 MB": with_chunk(b"iCCP", b"n\0\0" + packed(2 << 20)),
    "png, garbage for a profile": with_chunk(b"iCCP", b"n\0\0zzzz"),
    "png, profile of an unknown method": with_chunk(b"iCCP", b"n\0\7zzzz"),
    "png, empty profile": with_chunk(b"iCCP", b""),
    "png, short gamma": with_chunk(b"gAMA", b""),
    "png, short chromaticities": with_chunk(b"cHRM", b"ab"),
    "png, transparency of another kind": with_chunk(b"tRNS", b"a"),
    "png, garbage for Exif": with_chunk(b"eXIf", b"\xde\xad"),
    "png, text with a wrong checksum": with_chunk(b"tEXt", b"k\0v", b"abcd"),
    "png, Exif with a wrong checksum": with_chunk(b"eXIf", tag(0x0112, 3, 1, 6)[6:], b"abcd"),
    "png, short control of an animation": with_chunk(b"acTL", b"ab"),
    "png without its end": PNG[:-12],
    "png with part of its end": PNG[:-5],
    "png without the checksum of its pixels": PNG[:-16],
    "png that ends within a text": PNG[:-12] + chunk(b"tEXt", b"k\0" + bytes(100))[:50],
    "gif without its end": GIF[:-1],
    "gif with garbage for its end": GIF[:-1] + b"\x21\xff\x0bGARBAGE",
    "webp that says to be long": rewrapped(WEBP, 1 << 30),
    "webp that says to be short": rewrapped(WEBP, 10),
    "webp that ends within its metadata": with_metadata()[:-3],
    "lossy webp that says to be long": rewrapped(SOFT, 1 << 30),
    "jpeg 2000 without its end": J2K[:-2],
    "jpeg 2000 with half its end": J2K[:-1],
}

SCANS = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", at)]
ROW = RESTARTED.index(b"\xff\xd1")  # behind the second of three rows of blocks

# name: bytes; some of their pixels are missing
CUT = {
    "jpeg": JPEG[:-20],
    "jpeg within its last block": JPEG[:-4],
    "jpeg with room for the rest": JPEG[:-20] + bytes(4000),
    "jpeg with a broken profile": segment(0xE2, b"ICC_PROFILE\0")[:-20],
    "jpeg at a restart": RESTARTED[:ROW],
    "jpeg behind a restart": RESTARTED[: ROW + 2],
    "progressive jpeg": PROGRESSIVE[:-20],
    "progressive jpeg between scans": PROGRESSIVE[: SCANS[-1]],
    "progressive jpeg behind its first scan": PROGRESSIVE[: SCANS[1]],
    "jpeg behind its header": JPEG[: JPEG.index(b"\xff\xda")],
    "png": PNG[:-30],
    "png with text of 2 MB": with_chunk(b"zTXt", b"k\0\0" + packed(2 << 20))[:-30],
    "gif": GIF[:-12],
    "webp": WEBP[:-3],
    "webp with metadata": with_metadata()[: with_metadata().index(b"VP8L") + 20],
    "lossy webp": SOFT[:-30],
    "jpeg 2000": J2K[:-5],
    "bmp": save(split(), "BMP")[:-1],
}


def bands():
    """200 on the left, 40 on the right."""
    return np.repeat(np.array([[200.0, 40.0]]), 20, 1).repeat(30, 0)


def tiff(values, photometric=1, format_=1, order="<"):
    """A TIFF of one channel as any program may write it."""
    kind = values.dtype.newbyteorder(order)
    body = values.astype(kind).tobytes()
    height, width = values.shape
    bits = 8 * values.dtype.itemsize
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(body)), (339, format_)]
    table = b"".join(struct.pack(order + "HHII", name, 4, 1, value) for name, value in entries)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(body))
    return start + body + struct.pack(order + "H", len(entries)) + table + bytes(4)


def with_holes(values):
    """Some of them no numbers."""
    values[:3], values[3:5, :5], values[5:7, :5] = np.nan, np.inf, -np.inf
    return values


def floats(values, **more):
    return tiff(np.asarray(values, np.float32), format_=3, **more)


def pgm(most, values):
    return b"P5 40 30 %d\n" % most + values.astype(">u2").tobytes()


def numbers(mode, scale):
    """As Pillow saves them."""
    kind = {"I;16": np.uint16, "I": np.int32}[mode]
    return save(Image.fromarray((bands() * scale).astype(kind)), "PNG" if mode == "I;16" else "TIFF")


# name: bytes, and what the left and right halves must look like
NUMBERS = {
    "floats 0 to 1": (floats(bands() / 255), (200, 40)),
    "floats 0 to 255": (floats(bands()), (200, 40)),
    "floats 0 to 65535": (floats(bands() * 256), (200, 40)),
    "floats, big endian": (floats(bands() / 255, order=">"), (200, 40)),
    "floats 0 to 1 with holes": (floats(with_holes(bands() / 255)), (200, 40)),
    "floats 0 to 255 with holes": (floats(with_holes(bands())), (200, 40)),
    "floats around 0": (floats((bands() - 120) / 80), (255, 0)),
    "floats that exceed 1 by little": (floats(bands() / 190), (255, 0)),
    "floats beyond 16 bits": (floats(bands() * 1e6), (255, 0)),
    "floats, white is zero": (floats(bands() / 255, photometric=0), (55, 215)),
    "portable floats": (b"Pf\n40 30\n-1.0\n" + (bands() / 255).astype("<f4").tobytes(), (200, 40)),
    "16 bits": (numbers("I;16", 257), (200, 40)),
    "14 bits in 16": (numbers("I;16", 64), (200, 40)),
    "12 bits in 16": (numbers("I;16", 16), (200, 40)),
    "10 bits in 16": (numbers("I;16", 4), (200, 40)),
    "8 bits in 16": (numbers("I;16", 1), (200, 40)),
    "12 bits in 16, tiff": (tiff((bands() * 16).astype(np.uint16)), (200, 40)),
    "12 bits in 16, big endian": (tiff((bands() * 16).astype(np.uint16), order=">"), (200, 40)),
    "16 bits, white is zero": (tiff((bands() * 257).astype(np.uint16), photometric=0), (55, 215)),
    "16 bits with a sign": (tiff((bands() * 16).astype(np.int16), format_=2), (200, 40)),
    "16 bits below zero": (tiff((bands() - 1000).astype(np.int16), format_=2), (255, 0)),
    "8 bits in 32": (numbers("I", 1), (200, 40)),
    "16 bits in 32": (numbers("I", 257), (200, 40)),
    "32 bits": (tiff((bands() * 65537 * 257).astype(np.uint32)), (255, 0)),
    "32 bits with a sign": (tiff((bands() * 1e6 - 1e8).astype(np.int32), format_=2), (255, 0)),
    "zeros and ones in 16": (tiff((bands() > 100).astype(np.uint16)), (255, 0)),
    "greymap of 12 bits": (pgm(4095, bands() * 16), (200, 40)),
    "greymap of 12 bits that says 16": (pgm(65_535, bands() * 16), (200, 40)),
    "jpeg 2000 of 12 bits that says 16": (
        save(Image.fromarray((bands() * 16).astype(np.uint16)), "JPEG2000"),
        (200, 40),
    ),
}


def bmp(alpha, header=108, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)):
    """32 bits a pixel; header: bytes of its newer kinds, which may have an alpha channel."""
    row = bytes((*RED[::-1], alpha)) * 20 + bytes((*BLUE[::-1], alpha)) * 20
    told = struct.pack("<IiiHHIIiiII", header, 40, 30, 1, 32, 3, 30 * len(row), 0, 0, 0, 0) + struct.pack("<4I", *masks)
    told += bytes(header - len(told))
    return b"BM" + struct.pack("<IHHI", 14 + len(told) + 30 * len(row), 0, 0, 14 + len(told)) + told + row * 30


# name: bytes; red on the left and blue on the right
OPAQUE = {
    "bmp, alpha 0 everywhere": bmp(0),
    "bmp of the fifth kind, alpha 0 everywhere": bmp(0, 124),
    "bmp of the third kind, alpha 0 everywhere": bmp(0, 56),
    "bmp without masks": bmp(0, masks=(0, 0, 0, 0)),
    "dib, alpha 0 everywhere": bmp(0)[14:],
    "bmp, alpha 255 everywhere": bmp(255),
}


def rows_of(values, *, colour):
    return png(40, 30, 16, colour, zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))


CLEAR = Image.new("RGBA", (40, 30), (200, 40, 30, 0))
LOW = np.stack([bands() * 16 / 257] * 3, -1) * 16

# name: bytes; a viewer shows nothing, or what is decoded of it is black
UNSEEN = {
    "png, all transparent": save(CLEAR, "PNG"),
    "grey png, all transparent": save(CLEAR.convert("LA"), "PNG"),
    "webp, all transparent": save(CLEAR, "WEBP", lossless=True, exact=True),
    "tiff, all transparent": save(CLEAR, "TIFF"),
    "palette png, all transparent": save(split().quantize(4), "PNG", transparency=bytes(4)),
    "png of one colour, which is transparent": save(Image.new("RGB", (9, 9), BLUE), "PNG", transparency=BLUE),
    "12 bits of colour in 16, png": rows_of(LOW, colour=2),
    "12 bits of colour in 16, ppm": b"P6 40 30 65535\n" + LOW.astype(">u2").tobytes(),
}
HALF_CLEAR = save(cut_out(), "PNG")
