"""Images as they come: odd ones that a viewer shows, and hostile ones that nothing should."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RED, BLUE = (200, 40, 30), (20, 50, 210)


def split(size=(40, 30)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth=8, colour=2, body=b"", *extra):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = split() if orientation == 1 else split().transpose(INVERSE[orientation])
    return save(turned, "JPEG", quality=95, exif=exif)


INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def wide(depth_of):
    return Image.fromarray(
        np.repeat(np.array([[200, 40]], np.uint16) * depth_of, 20, 1).repeat(30, 0).astype(np.uint16)
    )


def grey():
    return Image.fromarray(np.repeat(np.array([[200, 40]], np.uint8), 20, 1).repeat(30, 0))


def palette(transparent=None):
    image = split().quantize(4)
    options = {} if transparent is None else {"transparency": image.getpixel((39, 0))}
    return image, options


def cut_out(mode="RGBA"):
    image = split().convert("RGBA")
    image.paste((0, 0, 0, 0), (20, 0, 40, 30))
    return image.convert(mode)


def frames(kind):
    return save(split(), kind, save_all=True, append_images=[Image.new("RGB", (40, 30), "white")] * 3)


JPEG = save(split(), "JPEG", quality=95)
PNG = save(split(), "PNG")

# name: bytes, and what the left and right halves must look like (None: anything that decodes)
SHOWN = {
    "jpeg": (JPEG, (RED, BLUE)),
    "progressive jpeg": (save(split(), "JPEG", quality=95, progressive=True), (RED, BLUE)),
    "grey jpeg": (save(grey(), "JPEG", quality=95), ((200,) * 3, (40,) * 3)),
    "cmyk jpeg": (save(split().convert("CMYK"), "JPEG", quality=95), (RED, BLUE)),
    "cmyk tiff": (save(split().convert("CMYK"), "TIFF"), (RED, BLUE)),
    "jpeg with garbage behind": (JPEG + b"garbage" * 100, (RED, BLUE)),
    "jpeg named otherwise": (JPEG, (RED, BLUE)),
    "jpeg with a damaged exif block": (
        JPEG[:2] + b"\xff\xe1\x00\x10Exif\x00\x00" + b"\xde\xad\xbe\xef\xff\xff\xff\xff" + JPEG[2:],
        (RED, BLUE),
    ),
    "several pictures in one jpeg": (save(split(), "MPO", save_all=True, append_images=[grey().convert("RGB")]), None),
    **{f"exif orientation {n}": (with_exif(n), (RED, BLUE)) for n in range(1, 9)},
    "exif orientation that is none": (save(split(), "JPEG", quality=95, exif=b"Exif\x00\x00"), (RED, BLUE)),
    "png": (PNG, (RED, BLUE)),
    "interlaced png": (png(1, 1, 8, 2, zlib.compress(b"\0\1\2\3")), None),
    "16 bit grey png": (save(wide(256), "PNG"), ((200,) * 3, (40,) * 3)),
    "16 bit rgb png": (
        png(2, 1, 16, 2, zlib.compress(b"\0" + struct.pack(">6H", *(256 * c for c in (*RED, *BLUE))))),
        (RED, BLUE),
    ),
    "16 bit grey tiff": (save(wide(256), "TIFF"), ((200,) * 3, (40,) * 3)),
    "float tiff": (save(grey().convert("F"), "TIFF"), ((200,) * 3, (40,) * 3)),
    "float tiff with no numbers": (save(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), None),
    "32 bit tiff": (save(wide(256).convert("I"), "TIFF"), ((200,) * 3, (40,) * 3)),
    "one bit png": (save(grey().convert("1", dither=Image.Dither.NONE), "PNG"), ((255,) * 3, (0,) * 3)),
    "one bit tiff": (save(grey().convert("1", dither=Image.Dither.NONE), "TIFF"), ((255,) * 3, (0,) * 3)),
    "palette png": (save(palette()[0], "PNG"), (RED, BLUE)),
    "palette png with transparency": (save(palette(True)[0], "PNG", **palette(True)[1]), (RED, (255,) * 3)),
    "png with alpha": (save(cut_out(), "PNG"), (RED, (255,) * 3)),
    "grey png with alpha": (save(cut_out("LA"), "PNG"), (None, (255,) * 3)),
    "rgb png with one transparent colour": (save(split(), "PNG", transparency=BLUE), (RED, (255,) * 3)),
    "grey png with one transparent level": (save(grey(), "PNG", transparency=40), ((200,) * 3, (255,) * 3)),
    "webp": (save(split(), "WEBP", lossless=True), (RED, BLUE)),
    "webp with alpha": (save(cut_out(), "WEBP", lossless=True), (RED, (255,) * 3)),
    "animated webp": (frames("WEBP"), None),
    "gif": (save(split(), "GIF"), (RED, BLUE)),
    "animated gif": (frames("GIF"), (RED, BLUE)),
    "gif with transparency": (save(palette(True)[0], "GIF", **palette(True)[1]), (RED, (255,) * 3)),
    "animated png": (frames("PNG"), (RED, BLUE)),
    "tiff of several pages": (frames("TIFF"), (RED, BLUE)),
    "tiff, compressed": (save(split(), "TIFF", compression="tiff_lzw"), (RED, BLUE)),
    "tiff, in lab colours": (save(Image.new("LAB", (40, 30)), "TIFF"), None),
    "tiff, big endian 16 bit": (save(Image.new("I;16B", (40, 30)), "TIFF"), None),
    "bmp": (save(split(), "BMP"), (RED, BLUE)),
    "ppm": (save(split(), "PPM"), (RED, BLUE)),
    "pgm": (save(grey(), "PPM"), ((200,) * 3, (40,) * 3)),
    "jpeg 2000": (save(split(), "JPEG2000"), (RED, BLUE)),
    "avif": (save(split(), "AVIF", quality=95), None),
    "1 x 5000": (save(Image.new("RGB", (1, 5000), RED), "PNG"), (RED, RED)),
    "5000 x 1": (save(Image.new("RGB", (5000, 1), RED), "PNG"), (RED, RED)),
    "one pixel": (save(Image.new("RGB", (1, 1), RED), "PNG"), (RED, RED)),
}

# name: bytes, and the reason its row must give
REFUSED = {
    "nothing": (b"", "undecodable"),
    "one byte": (b"\xff", "undecodable"),
    "text": (b"<html><body>404</body></html>", "undecodable"),
    "zeros": (bytes(5000), "undecodable"),
    "noise": (np.random.default_rng(0).bytes(5000), "undecodable"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "undecodable"),
    "jpeg of a header alone": (JPEG[:20], "undecodable"),
    "truncated png": (PNG[:60], "undecodable"),
    "png without pixels": (png(10, 10), "undecodable"),
    "png with a damaged checksum": (PNG[:50] + bytes([PNG[50] ^ 255]) + PNG[51:], "undecodable"),
    "png of no width": (png(0, 10, 8, 2, zlib.compress(b"\0")), "undecodable"),
    "png bomb": (png(60_000, 60_000, 8, 0, zlib.compress(bytes(1 << 20))), "too_large"),
    "png wider than any camera": (png(2**31 - 1, 1, 8, 0, zlib.compress(b"\0")), "too_large"),
    "png with a text bomb": (
        png(1, 1, 8, 2, zlib.compress(b"\0\1\2\3"), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26)))),
        "undecodable",
    ),
    "ppm that promises more than it holds": (b"P6 10000 10000 255\n" + b"x" * 100, "undecodable"),
    "ppm bomb": (b"P6 100000 100000 255\n", "too_large"),
    "pgm of no pixels": (b"P5 0 0 255\n", "undecodable"),
    "bmp of negative width": (b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHH", 40, -5, 5, 1, 24)
                              + bytes(24), "too_large"),
    "gif of a header alone": (b"GIF89a" + struct.pack("<HH", 100, 100) + b"\0\0\0", "undecodable"),
    "gif bomb": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0" + b",\0\0\0\0"
                 + struct.pack("<HH", 65_535, 65_535) + b"\0\x02\x00;", "too_large"),
    "tiff with a directory nowhere": (b"II*\0" + struct.pack("<I", 1 << 30), "undecodable"),
    "tiff with a directory in a circle": (b"II*\0" + struct.pack("<I", 8) + b"\0\0" + struct.pack("<I", 8),
                                          "undecodable"),
    "truncated webp": (save(split(), "WEBP")[:40], "undecodable"),
    "truncated avif": (save(split(), "AVIF")[:120], "undecodable"),
    "truncated jpeg 2000": (save(split(), "JPEG2000")[:100], "undecodable"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "undecodable"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "undecodable"),
    "icon": (save(split(), "ICO"), "undecodable"),
}  # fmt: skip
