"""Annotations beside photos: COCO with masks and panoptic label maps, Pascal VOC, and CVAT for images 1.1.

coco   annotations/instances_<side>.json                      one annotation an instance, compressed run lengths
       annotations/panoptic_<side>.json, panoptic_<side>/<name>.png    one PNG an image, ids in its three channels
       images/<side>/<name>.<extension>                       the photos
       An export of several parts has documents instances_<side>_<part>.json; readers find both by these names.
voc    JPEGImages/<name>.<extension>           the photos
       SegmentationObject/<name>.png           ids 0, 1, ... as in the run, 255 for void; 16 bit beyond 255 segments
       SegmentationClass/<name>.png            of a table of categories: their ids; 255 for void and unknown, 65535 in
                                               16 bit; readers of ADE20K's pairs of folders read these two folders too
       categories.json                         and that table, as COCO lists them
       ImageSets/Segmentation/<side>.txt       the names, one a line
cvat   annotations_<side>.xml                  or annotations_<side>_<part>.xml of several parts
       images/<key>_<shard>_<index>.<extension>    the photos, by whose names `diffseg import` finds where corrections
                                               belong
Formats: https://cocodataset.org/#format-data, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html,
https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from diffseg.draw import IGNORED, encoded, palette
from diffseg.types import IGNORE, Int, Segment
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import OBJECT, category_map, regions_of
from pipeline.exports.parts import Add, PartWriter, growing_list
from pipeline.exports.rle import encode
from pipeline.storage.object_store import Store
from pipeline.table.label_map import encode_label_map

VOID = 255
COLOURS = palette(VOID).tobytes() + bytes(IGNORED)
LISTS = "_export/lists"  # of each part; joined when all are there


@contextmanager
def segments(writer: PartWriter) -> Iterator[Add]:
    """Annotations for detection and instance segmentation; stuff and instances below the smallest area are left out."""
    with _document(writer, "instances") as (add_image, add_annotation):

        def add(sample: LabelledSample) -> None:
            add_image(sample)
            regions, found = regions_of(sample, writer.work.categories, writer.work.selection.min_area)
            masks = [mask for mask, _ in encode(regions)]
            for owner, region in found:
                name = writer.work.categories.of(region) or OBJECT
                if name in writer.work.categories.stuff:
                    continue
                add_annotation(
                    {
                        "id": next(writer.ids),
                        "image_id": sample.number,
                        "category_id": writer.work.categories.ids[name],
                        "segmentation": masks[region.id],
                        **_measures(region),
                        "segment_id": owner,
                    }
                )

        yield add


@contextmanager
def panoptic(writer: PartWriter) -> Iterator[Add]:
    """Panoptic segmentation: every pixel one segment or void."""
    folder = f"annotations/panoptic_{writer.side}"
    with _document(writer, "panoptic") as (add_image, add_annotation):

        def add(sample: LabelledSample) -> None:
            add_image(sample)
            regions, merged = regions_of(sample, writer.work.categories, writer.work.selection.min_area)
            writer.put(f"{folder}/{sample.name}.png", panoptic_png(regions))
            found = [
                {
                    "id": region.id + 1,
                    "category_id": writer.work.categories.ids[writer.work.categories.of(region) or OBJECT],
                    **_measures(region),
                }
                for _, region in merged
            ]
            add_annotation({"image_id": sample.number, "file_name": f"{sample.name}.png", "segments_info": found})

        yield add


def _measures(region: Segment) -> dict[str, Any]:
    return {"area": region.area, "bbox": region.box, "iscrowd": 0, "score": region.score}


@contextmanager
def _document(writer: PartWriter, kind: str) -> Iterator[tuple[Add, Callable[[dict[str, Any]], None]]]:
    """One JSON file: annotations as they come, then the images, 200 bytes of memory each, and the categories.

    `info` names the model's licence; `licenses` are those of photos, where they were kept (`label --keep`).
    """
    images, licences = list[bytes](), dict[str, int]()

    def add_image(sample: LabelledSample) -> None:
        writer.put_photo(f"images/{writer.side}", sample)
        fields = {name: sample.row[name] for name in ("width", "height", "key", "quality")}
        if licence := (sample.row["kept"] or {}).get("license"):
            fields["license"] = licences.setdefault(licence, len(licences) + 1)
        named = {"id": sample.number, "file_name": f"{sample.name}.{sample.extension}", **fields}
        images.append(json.dumps(named).encode())

    with writer.store.growing(f"annotations/{kind}_{writer.side}{writer.suffix}.json") as out:
        out.write(b'{"annotations": ')
        with growing_list(out) as add_annotation:
            yield add_image, add_annotation
        listed = b"[\n" + b",\n".join(images) + b"\n]" if images else b"[]"
        out.write(b',\n"images": ' + listed)
        out.write(b',\n"categories": ' + json.dumps(writer.work.categories.listed()).encode())
        if licences:
            listed = json.dumps([{"id": id_, "name": name, "url": ""} for name, id_ in licences.items()]).encode()
            out.write(b',\n"licenses": ' + listed)
        out.write((b',\n"info": ' + json.dumps(writer.notice).encode() if writer.notice else b"") + b"}\n")


def panoptic_png(label_map: Int[np.ndarray, "H W"]) -> bytes:
    """Ids from 1 on as red + 256 green + 256² blue; black is void."""
    ids = np.where(label_map == IGNORE, 0, label_map + 1)
    channels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    return encoded(Image.fromarray(channels), "PNG", compress_level=6)


@contextmanager
def pngs(writer: PartWriter) -> Iterator[Add]:
    """A PNG an image."""
    with writer.store.growing(_list_name(writer.side, writer.number)) as names:
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


@contextmanager
def masks(writer: PartWriter) -> Iterator[Add]:
    """Masks as run lengths of their boxes, row by row, pixels outside first."""
    categories = writer.work.categories
    names = "".join(f"<label><name>{escape(each)}</name></label>" for each in dict.fromkeys((*categories.ids, OBJECT)))
    with writer.store.growing(f"annotations_{writer.side}{writer.suffix}.xml") as out:
        out.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        out.write(f"<meta><task><labels>{names}</labels></task></meta>\n".encode())

        def add(sample: LabelledSample) -> None:
            height, width = sample.label_map.shape
            sample = writer.put_found_photo("images", sample)
            name = quoteattr(f"{sample.name}.{sample.extension}")
            lines = [f'<image id="{sample.number}" name={name} width="{width}" height="{height}">']
            for each in sample.segments:
                left, top, width, height = each.box
                inside = (sample.label_map[top : top + height, left : left + width] == each.id).ravel()
                counts = np.diff(np.flatnonzero(np.diff(inside, prepend=False)), prepend=0, append=inside.size)
                place = f'left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"'
                label, runs = quoteattr(categories.of(each) or OBJECT), ", ".join(map(str, counts.tolist()))
                lines.append(f'<mask label={label} rle="{runs}" {place}/>')
            out.write("\n".join((*lines, "</image>\n")).encode())

        yield add
        out.write(b"</annotations>\n")
