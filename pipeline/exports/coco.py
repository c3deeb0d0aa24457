"""COCO: annotations with masks, and panoptic label maps.

annotations/instances_<side>.json                      one annotation an instance, compressed run lengths
annotations/panoptic_<side>.json, panoptic_<side>/<name>.png    one PNG an image, ids in its three channels
images/<side>/<name>.<extension>                       the photos
An export of several parts has documents instances_<side>_<part>.json; readers find both by these names.
Format: https://cocodataset.org/#format-data
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from diffseg.draw import encoded
from diffseg.types import IGNORE, Int, Segment
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import OBJECT, regions_of
from pipeline.exports.rle import encode
from pipeline.exports.writer import PartWriter

Add = Callable[[LabelledSample], None]


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
    images, before, licences = list[bytes](), b"[\n", dict[str, int]()

    def add_image(sample: LabelledSample) -> None:
        writer.put_photo(f"images/{writer.side}", sample)
        fields = {name: sample.row[name] for name in ("width", "height", "key", "quality")}
        if licence := (sample.row["kept"] or {}).get("license"):
            fields["license"] = licences.setdefault(licence, len(licences) + 1)
        named = {"id": sample.number, "file_name": f"{sample.name}.{sample.extension}", **fields}
        images.append(json.dumps(named).encode())

    def add_annotation(element: dict[str, Any]) -> None:
        nonlocal before
        out.write(before + json.dumps(element).encode())
        before = b",\n"

    with writer.grow(f"annotations/{kind}_{writer.side}{writer.suffix}.json") as out:
        out.write(b'{"annotations": ')
        yield add_image, add_annotation
        out.write(b"[]" if before == b"[\n" else b"\n]")
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
