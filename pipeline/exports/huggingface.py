"""Hugging Face: Parquet that `datasets` loads with the right types of images, label maps and columns.

data/<side>-<part>.parquet; `load_dataset` finds the splits by these names.
Format: the `huggingface` key of the schema's metadata, as `datasets.Features` writes it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from pipeline import table
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.writer import PartWriter
from pipeline.table.label_map import encode_label_map

ROWS = 100  # a row group: a reader of single rows fetches all of it, a few MB of photos


# By name of the column; label maps have ids, 255 (65535 in 16 bit) for void pixels.
FEATURES: dict[str, Any] = json.loads((files("pipeline.exports") / "data" / "huggingface.json").read_text("utf-8"))


@contextmanager
def parquet(writer: PartWriter) -> Iterator[Callable[[LabelledSample], None]]:
    """A row an image. Categories of a table are numbers from 0, in the table's order; null: unknown."""
    name, labels = f"data/{writer.side}-{writer.number:05}.parquet", list(writer.work.categories.ids)
    features, [segment] = FEATURES, FEATURES["segments"]
    if writer.work.categories.table:
        features = FEATURES | {"segments": [segment | {"category": {"names": labels, "_type": "ClassLabel"}}]}
    with writer.grow(name) as out, table.images.writing_features(out, features, ROWS, writer.notice) as write:

        def add(sample: LabelledSample) -> None:
            row = {column: sample.row[column] for column in FEATURES if column in sample.row}
            row["image"] = {"bytes": sample.photo, "path": f"{sample.name}.{sample.extension}"}
            row["label_map"] = {"bytes": encode_label_map(sample.label_map), "path": f"{sample.name}.png"}
            row["segments"] = [asdict(segment) for segment in sample.segments]
            for each in row["segments"] if writer.work.categories.table else ():
                each["category"] = None if each["category"] is None else labels.index(each["category"])
            write(row)

        yield add
