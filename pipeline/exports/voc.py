"""Pascal VOC: label maps as indexed PNGs in its folders; readers of ADE20K's pairs of folders read these two too.

JPEGImages/<name>.<extension>           the photos
SegmentationObject/<name>.png           ids 0, 1, ... as in the run, 255 for void; 16 bit beyond 255 segments
SegmentationClass/<name>.png            of a table of categories: their ids; 255 for void and unknown, 65535 in 16 bit
categories.json                         and that table, as COCO lists them
ImageSets/Segmentation/<side>.txt       the names, one a line
Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from diffseg.draw import IGNORED, encoded, palette
from diffseg.types import IGNORE, Int
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import category_map
from pipeline.exports.writer import PartWriter
from pipeline.storage.object_store import Store
from pipeline.table.label_map import encode_label_map

VOID = 255
COLOURS = palette(VOID).tobytes() + bytes(IGNORED)
LISTS = "_export/lists"  # of each part; joined when all are there


@contextmanager
def pngs(writer: PartWriter) -> Iterator[Callable[[LabelledSample], None]]:
    """A PNG an image."""
    with writer.grow(_list_name(writer.side, writer.number)) as names:
        if writer.work.categories.table:
            writer.put("categories.json", json.dumps(writer.work.categories.listed(), indent=2).encode())

        def add(sample: LabelledSample) -> None:
            writer.put_photo("JPEGImages", sample)
            writer.put(f"SegmentationObject/{sample.name}.png", indexed_png(sample.label_map))
            if writer.work.categories.table:
                ids = category_map(sample, writer.work.categories)
                writer.put(f"SegmentationClass/{sample.name}.png", indexed_png(ids))
            names.write(f"{sample.name}\n".encode())

        yield add


def join_lists(store: Store, parts: int, sides: list[str]) -> None:
    """One list of names a side, from those of the parts."""
    for side in sides:
        with store.growing(f"ImageSets/Segmentation/{side}.txt") as whole:
            for part in range(parts):
                if store.exists(_list_name(side, part)):
                    whole.write(store.get(_list_name(side, part)))


def _list_name(side: str, part: int) -> str:
    return f"{LISTS}/{side}.{part:06}.txt"


def indexed_png(label_map: Int[np.ndarray, "H W"]) -> bytes:
    """One byte a pixel with a colour for every id; larger ids are written as `encode_label_map` does."""
    if label_map.max(initial=0) >= VOID:
        return encode_label_map(label_map)
    picture = Image.fromarray(np.where(label_map == IGNORE, VOID, label_map).astype(np.uint8))
    picture.putpalette(COLOURS)
    return encoded(picture, "PNG", compress_level=6)
