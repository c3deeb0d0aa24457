"""CVAT for images 1.1: a mask a segment, labelled with its category or `object`, to be corrected and imported again.

annotations_<side>.xml, or annotations_<side>_<part>.xml of several parts
images/<key>_<shard>_<index>.<extension>    the photos, by whose names `diffseg import` finds where corrections belong
Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import OBJECT
from pipeline.exports.writer import PartWriter
from pipeline.storage.names import generated_name


@contextmanager
def masks(writer: PartWriter) -> Iterator[Callable[[LabelledSample], None]]:
    """Masks as run lengths of their boxes, row by row, pixels outside first."""
    categories = writer.work.categories
    names = "".join(f"<label><name>{escape(each)}</name></label>" for each in dict.fromkeys((*categories.ids, OBJECT)))
    with writer.grow(f"annotations_{writer.side}{writer.suffix}.xml") as out:
        out.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        out.write(f"<meta><task><labels>{names}</labels></task></meta>\n".encode())

        def add(sample: LabelledSample) -> None:
            row, (height, width) = sample.row, sample.label_map.shape
            sample = replace(sample, name=generated_name(row["key"], row["shard"], row["index"]))
            writer.put_photo("images", sample)
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
