"""Corrected images as annotation tools give them back: CVAT for images 1.1 and COCO instances, in a zip or not.

Letters: H x W pixels of an image.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
from defusedxml import ElementTree

from diffseg.types import IGNORE, Bool, Int32
from pipeline.errors import ConfigError
from pipeline.exports.rle import decode
from pipeline.records import MAX_PIXELS
from pipeline.storage import filesystem
from pipeline.storage.url import redact

LARGEST = 2**30  # bytes of a document, unpacked: masks of about a hundred thousand images
DAMAGE = (ValueError, TypeError, KeyError, LookupError, SyntaxError, OSError, EOFError, RuntimeError)  # of any format
Size = tuple[int, int]
Shape = tuple[str, int, Callable[[Size], Bool[np.ndarray, "H W"]]]  # category, depth, and the mask at an image's size


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An image as people want it. name: of its file. categories: by id of the label map."""

    name: str
    label_map: Int32[np.ndarray, "H W"]
    categories: tuple[str, ...]


def read_given(url: str) -> Iterator[Given]:
    """Images in the order of the file. Raises ConfigError where it is damaged or contradicts itself."""
    try:
        entry = filesystem.stat(url)
        with ExitStack() as opened:
            stream = opened.enter_context(filesystem.open_ranged(entry.url, entry.size))
            size = entry.size
            if stream.read(4) == b"PK\3\4":
                stream, size = _unpacked(opened.enter_context(zipfile.ZipFile(stream)), opened)
            if size > LARGEST:
                raise ValueError(f"{size:,} bytes, more than {LARGEST:,}")
            stream.seek(0)
            xml = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
            stream.seek(0)
            yield from _cvat(stream) if xml else _coco(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"{redact(url)}: no such file") from error
    except (*DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{redact(url)}: neither CVAT for images 1.1 nor COCO instances: {why}") from error


def _unpacked(archive: zipfile.ZipFile, opened: ExitStack) -> tuple[BinaryIO, int]:
    """The one document of an archive, and its size."""
    documents = [each for each in archive.infolist() if each.filename.lower().endswith((".xml", ".json"))]
    if len(documents) != 1:
        raise ValueError(f"a zip with {len(documents)} documents, not one")
    return cast(BinaryIO, io.BufferedReader(opened.enter_context(archive.open(documents[0])))), documents[0].file_size


def _cvat(stream: BinaryIO) -> Iterator[Given]:
    for _, element in ElementTree.iterparse(stream, forbid_dtd=True):
        if element.tag == "labels":
            _check_once([str(each.findtext("name")) for each in element.iter("label")])
        if element.tag == "track":
            raise ValueError("a track of CVAT for video")
        if element.tag == "image":
            own = dict(element.attrib)
            shapes = [_of_cvat(each.tag, dict(each.attrib)) for each in element if each.tag != "tag"]
            yield _painted(own["name"], (int(own["height"]), int(own["width"])), shapes)
            element.clear()


def _of_cvat(tag: str, own: dict[str, str]) -> Shape:
    if tag == "polygon":
        points = own["points"].replace(";", ",").split(",")
        return own["label"], int(own.get("z_order", 0)), partial(decode, [list(map(float, points))])
    if tag != "mask":
        raise ValueError(f"a {tag}, where masks and polygons are labels")
    left, top, width, height = (int(float(own[name])) for name in ("left", "top", "width", "height"))
    counts = np.array(own["rle"].split(","), np.int64)

    def mask(size: Size) -> Bool[np.ndarray, "H W"]:
        inside = min(left, top) >= 0 and top + height <= size[0] and left + width <= size[1]
        if not inside or (counts < 0).any() or counts.sum() != width * height:
            raise ValueError(f"a mask of {width} x {height} at {left}, {top} with {counts.sum()} pixels")
        found = np.zeros(size, bool)
        found[top : top + height, left : left + width] = np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(
            height, width
        )
        return found

    return own["label"], int(own.get("z_order", 0)), mask


def _coco(stream: BinaryIO) -> Iterator[Given]:
    document = json.loads(stream.read(LARGEST))
    names = {each["id"]: each["name"] for each in document["categories"]}
    _check_once([each[name] for name in ("id", "name") for each in document["categories"]])
    shapes: dict[Any, list[Shape]] = {each["id"]: [] for each in document["images"]}
    for each in document["annotations"]:
        shapes[each["image_id"]].append((names[each["category_id"]], 0, partial(decode, each["segmentation"])))
    for each in document["images"]:
        yield _painted(each["file_name"], (int(each["height"]), int(each["width"])), shapes.pop(each["id"]))


def _check_once(names: Sequence[Any]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"category {twice[0]!r} is there twice")


def _painted(name: str, size: Size, shapes: Sequence[Shape]) -> Given:
    """Masks as a label map, where those of greater depth cover others. Raises ValueError where two of one overlap."""
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{name}: {size[1]} x {size[0]} pixels")
    label_map = np.full(size, IGNORE, np.int32)
    ordered = sorted(shapes, key=lambda shape: shape[1])
    for id_, (category, depth, mask) in enumerate(ordered):
        try:
            pixels = mask(size)
        except DAMAGE as error:
            raise ValueError(f"{name}, {category!r}: {error}") from error
        for below in np.unique(label_map[pixels]).tolist():
            if below != IGNORE and ordered[below][1] == depth:
                raise ValueError(f"{name}: masks of {ordered[below][0]!r} and {category!r} overlap")
        label_map[pixels] = id_
    return Given(name, label_map, tuple(category for category, _, _ in ordered))
