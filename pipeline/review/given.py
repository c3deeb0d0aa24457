"""Corrected images as annotation tools give them back: CVAT 1.1, Label Studio, COCO instances, in a zip or not."""

import io
import json
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from defusedxml import ElementTree

from diffseg.types import IGNORE, Bool, Int32
from pipeline.errors import ConfigError
from pipeline.exports.label_studio import unpacked
from pipeline.exports.rle import decode
from pipeline.records import MAX_PIXELS
from pipeline.storage import filesystem
from pipeline.storage.url import redact

LARGEST = 2**30  # bytes of a document, unpacked: masks of about a hundred thousand images
DAMAGE = (  # of any format
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(SyntaxError, OSError, EOFError, RuntimeError),
)
Size = tuple[int, int]


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
            stream: Any = opened.enter_context(filesystem.open_ranged(entry.url, entry.size))
            size = entry.size
            if stream.read(4) == b"PK\3\4":
                archive = opened.enter_context(zipfile.ZipFile(stream))
                found = [each for each in archive.infolist() if each.filename.lower().endswith((".xml", ".json"))]
                if len(found) != 1:
                    raise ValueError(f"a zip with {len(found)} documents")
                stream, size = io.BufferedReader(opened.enter_context(archive.open(found[0]))), found[0].file_size
            if size > LARGEST:
                raise ValueError(f"{size:,} bytes, more than {LARGEST:,}")
            stream.seek(0)
            first = stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            yield from {b"<": _cvat, b"[": _label_studio}.get(first, _coco)(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"{redact(url)}: no such file") from error
    except (*DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{redact(url)}: neither CVAT for images 1.1 nor Label Studio nor COCO instances: {why}"
        ) from error


def _cvat(stream: Any) -> Iterator[Given]:
    for _, element in ElementTree.iterparse(stream, forbid_dtd=True):
        if element.tag == "track":
            raise ValueError("a track of CVAT for video")
        if element.tag == "labels":
            _check_once([each.findtext("name") for each in element.iter("label")])
        if element.tag == "image":
            size, shapes = _size(element.attrib), [each for each in element if each.tag != "tag"]
            labels = [(each.attrib["label"], int(each.get("z_order", 0))) for each in shapes]
            yield _painted(element.attrib["name"], size, labels, (_of_cvat(each, size) for each in shapes))
            element.clear()


def _of_cvat(shape: Any, size: Size) -> Bool[np.ndarray, "H W"]:
    if shape.tag == "polygon":
        return decode([shape.attrib["points"].replace(";", ",").split(",")], size)
    if shape.tag != "mask":
        raise ValueError(f"a {shape.tag}, where masks and polygons are labels")
    left, top, width, height = (int(float(shape.attrib[name])) for name in ("left", "top", "width", "height"))
    if not (0 <= left < left + width <= size[1] and 0 <= top < top + height <= size[0]):
        raise ValueError(f"{width} x {height} at {left}, {top} are not in the image")
    counts = {"size": (width, height), "counts": [int(each) for each in shape.attrib["rle"].split(",")]}
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = decode(counts, (width, height)).T  # COCO counts down columns
    return mask


def _label_studio(stream: Any) -> Iterator[Given]:
    """The last annotation of each task that was not cancelled, else its predictions; a later region covers others."""
    for task in json.loads(stream.read()):
        made = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
        regions = (made or task.get("predictions") or [{"result": ()}])[-1]["result"]
        size = _size({name: regions[0][f"original_{name}"] for name in ("height", "width")}) if regions else (1, 1)
        labels = [(str(each["value"][each["type"]][0]), depth) for depth, each in enumerate(regions)]
        yield _painted(_text(task["data"]["image"]), size, labels, (_of_label_studio(each, size) for each in regions))


def _of_label_studio(region: Any, size: Size) -> Bool[np.ndarray, "H W"]:
    value, (height, width) = region["value"], size
    if (region["original_height"], region["original_width"]) != size:
        raise ValueError("it is of another size than the region before")
    if region["type"] == "polygonlabels":  # in per cent
        return decode([[c for x, y in value["points"] for c in (x * width / 100, y * height / 100)]], size)
    if region["type"] != "brushlabels":
        raise ValueError(f"a region of {region['type']}, where masks and polygons are labels")
    return unpacked(value["rle"], size)


def _coco(stream: Any) -> Iterator[Given]:
    document, shapes = json.loads(stream.read()), defaultdict[Any, list[Any]](list)
    names = {each["id"]: _text(each["name"]) for each in document["categories"]}
    _check_once([*names.values()])
    _check_once([each["id"] for each in document["categories"]])
    for each in document["annotations"]:
        shapes[each["image_id"]].append(((names[each["category_id"]], 0), each["segmentation"]))
    for each in document["images"]:
        size, own = _size(each), shapes[each["id"]]
        yield _painted(
            _text(each["file_name"]), size, [label for label, _ in own], (decode(mask, size) for _, mask in own)
        )


def _check_once(names: Sequence[Any]) -> None:
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"category {twice[0]!r} is there twice")


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{name!r} where a name belongs")
    name.encode()  # half a letter, which JSON allows, raises
    return name


def _size(image: Any) -> Size:
    height, width = int(image["height"]), int(image["width"])
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width} x {height} pixels")
    return height, width


def _painted(name: str, size: Size, labels: list[tuple[str, int]], masks: Iterator[Any]) -> Given:
    """Masks as a label map, where those of greater depth cover others. labels: category and depth of each.

    Raises ValueError where two of one depth overlap.
    """
    label_map, depths = np.full(size, IGNORE, np.int32), np.array([*(depth for _, depth in labels), -(2**31)])
    for id_, (label, depth) in enumerate(labels):
        try:
            mask = next(masks)
            if (depths[label_map[mask]] == depth).any():
                raise ValueError("it overlaps another")
        except DAMAGE as error:
            raise ValueError(f"{name}, a mask of {label!r}: {error}") from error
        label_map[mask & (depths[label_map] < depth)] = id_
    return Given(name, label_map, tuple(label for label, _ in labels))
