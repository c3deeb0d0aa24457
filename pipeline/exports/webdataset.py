"""WebDataset: tar shards with all original members of a sample and its labels.

webdataset   <side>-<part>.tar: <name>.<original members>, <name>.label_map.png, <name>.segments.json
sa1b         sa_<side>_<part>.tar: sa_<number>.<extension>, sa_<number>.json
Formats: https://github.com/webdataset/webdataset, https://ai.meta.com/datasets/segment-anything-downloads/
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pipeline.datasets.samples import LabelledSample
from pipeline.exports.writer import PartWriter
from pipeline.inputs.kinds import IMAGE_EXTENSIONS
from pipeline.inputs.tar.writing import writing
from pipeline.table.label_map import encode_label_map


@contextmanager
def webdataset(writer: PartWriter) -> Iterator[Callable[[LabelledSample], None]]:
    """The original samples, with labels beside their members."""
    with writer.grow(f"{writer.side}-{writer.number:06}.tar") as out, writing(out) as write:

        def add(sample: LabelledSample) -> None:
            assert sample.raw is not None
            assert sample.photo is not None
            members = dict(sample.raw.members) if writer.work.members else {}
            if sample.raw.image not in members or sample.raw.image not in IMAGE_EXTENSIONS:
                members.pop(str(sample.raw.image), None)  # a table's column, say: no extension that readers would know
                members[sample.extension] = sample.photo
            members["label_map.png"] = encode_label_map(sample.label_map)
            members["segments.json"] = json.dumps(_description(sample)).encode()
            write(sample.name, members)

        yield add


def _description(sample: LabelledSample) -> dict[str, Any]:
    row = sample.row
    segments = [asdict(segment) for segment in sample.segments]
    return {**{name: row[name] for name in ("key", "width", "height", "quality")}, "segments": segments}
