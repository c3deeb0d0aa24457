"""Shards that hold photos and labels: WebDataset with all original members of a sample, Hugging Face, and SA-1B.

webdataset    <side>-<part>.tar: <name>.<original members>, <name>.label_map.png, <name>.segments.json
huggingface   data/<side>-<part>.parquet; `load_dataset` finds the splits by these names, and the right types of columns
              by the `huggingface` key of the schema's metadata, as `datasets.Features` writes it
sa1b          sa_<side>_<part>.tar: sa_<number>.<extension>, sa_<number>.json
Formats: https://github.com/webdataset/webdataset, https://ai.meta.com/datasets/segment-anything-downloads/
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import numpy as np

from pipeline import table
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.parts import Add, PartWriter
from pipeline.exports.rle import encode
from pipeline.inputs.kinds import IMAGE_EXTENSIONS
from pipeline.inputs.tar.writing import writing
from pipeline.table.label_map import encode_label_map

ROWS = 100  # a row group: a reader of single rows fetches all of it, a few MB of photos
# By name of the column; label maps have ids, 255 (65535 in 16 bit) for void pixels.
FEATURES: dict[str, Any] = json.loads((files("pipeline.exports") / "data" / "huggingface.json").read_text("utf-8"))


@contextmanager
def webdataset(writer: PartWriter) -> Iterator[Add]:
    """The original samples, with labels beside their members."""
    with writer.store.growing(f"{writer.side}-{writer.number:06}.tar") as out, writing(out) as write:

        def add(sample: LabelledSample) -> None:
            assert sample.raw is not None
            assert sample.photo is not None
            members = dict(sample.raw.members) if writer.work.members else {}
            if sample.raw.image not in members or sample.raw.image not in IMAGE_EXTENSIONS:
                members.pop(str(sample.raw.image), None)  # a table's column, say: no extension that readers would know
                members[sample.extension] = sample.photo
            members["label_map.png"] = encode_label_map(sample.label_map)
            description = {name: sample.row[name] for name in ("key", "width", "height", "quality")}
            description["segments"] = [asdict(segment) for segment in sample.segments]
            members["segments.json"] = json.dumps(description).encode()
            write(sample.name, members)

        yield add


@contextmanager
def sa1b(writer: PartWriter) -> Iterator[Add]:
    """A photo and a JSON of masks an image, named by number.

    `predicted_iou` and `stability_score` are both a segment's score: nothing else was measured.
    """
    with writer.store.growing(f"sa_{writer.side}_{writer.number:06}.tar") as out, writing(out) as write:

        def add(sample: LabelledSample) -> None:
            assert sample.photo is not None
            name = f"sa_{sample.number}"
            image = {
                "image_id": sample.number,
                "width": sample.row["width"],
                "height": sample.row["height"],
                "file_name": f"{name}.{sample.extension}",
                "key": sample.row["key"],
            }
            document = {"image": image, "annotations": list(_masks(writer, sample))}
            write(name, {sample.extension: sample.photo, "json": json.dumps(document).encode()})

        yield add


def _masks(writer: PartWriter, sample: LabelledSample) -> Iterator[dict[str, Any]]:
    """One a segment, however many components it has."""
    height, width = sample.label_map.shape
    masks = dict(enumerate(encode(sample.label_map)))
    for segment in sample.segments:
        mask, area = masks[segment.id]
        yield {
            "id": next(writer.ids),
            "segmentation": mask,
            "bbox": segment.box,
            "area": area,
            "predicted_iou": segment.score,
            "stability_score": segment.score,
            "crop_box": [0, 0, width, height],
            "point_coords": [_point_in(sample, segment.id)],
        }


def _point_in(sample: LabelledSample, number: int) -> list[float]:
    """x, y of the middle pixel of a segment in row order, which lies on the segment whatever its shape."""
    pixels = np.flatnonzero(sample.label_map == number)
    y, x = divmod(int(pixels[len(pixels) // 2]), sample.label_map.shape[1])
    return [float(x), float(y)]


@contextmanager
def parquet(writer: PartWriter) -> Iterator[Add]:
    """A row an image. Categories of a table are numbers from 0, in the table's order; null: unknown."""
    name, labels = f"data/{writer.side}-{writer.number:05}.parquet", list(writer.work.categories.ids)
    features, [segment] = FEATURES, FEATURES["segments"]
    if writer.work.categories.table:
        features = FEATURES | {"segments": [segment | {"category": {"names": labels, "_type": "ClassLabel"}}]}
    with writer.store.growing(name) as out, table.images.writing_features(out, features, ROWS, writer.notice) as write:

        def add(sample: LabelledSample) -> None:
            row = {column: sample.row[column] for column in FEATURES if column in sample.row}
            row["image"] = {"bytes": sample.photo, "path": f"{sample.name}.{sample.extension}"}
            row["label_map"] = {"bytes": encode_label_map(sample.label_map), "path": f"{sample.name}.png"}
            row["segments"] = [asdict(segment) for segment in sample.segments]
            for each in row["segments"] if writer.work.categories.table else ():
                each["category"] = None if each["category"] is None else labels.index(each["category"])
            write(row)

        yield add
