"""CVAT for images 1.1: a mask a segment, labelled with its category, to be corrected and imported again.

annotations.xml                                one document; `annotations_<part>.xml` where there are several parts
images/<name of the sample>_<shard>_<index>.<extension>   the photos: their names say where corrections belong
Masks are run lengths of a box, row by row, pixels outside first.
Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from diffseg.types import Bool, Int
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import OBJECT
from pipeline.exports.writer import PartWriter
from pipeline.storage.names import generated_name

UNKNOWN = OBJECT  # the label of a segment without a category


@contextmanager
def masks(writer: PartWriter) -> Iterator[Callable[[LabelledSample], None]]:
    """A document of the images of a part, whichever side they are of."""
    names = dict.fromkeys((*writer.work.categories.ids, UNKNOWN))
    labels = "".join(f"<label><name>{escape(name)}</name><type>mask</type></label>\n" for name in names)
    side = "" if writer.side == "train" else f"_{writer.side}"
    with writer.grow(f"annotations{side}{writer.suffix}.xml") as out:
        out.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        out.write(f"<meta><task><labels>\n{labels}</labels></task></meta>\n".encode())

        def add(sample: LabelledSample) -> None:
            row = sample.row
            sample = replace(sample, name=generated_name(row["key"], row["shard"], row["index"]))
            writer.put_photo("images", sample)
            height, width = sample.label_map.shape
            name = quoteattr(f"{sample.name}.{sample.extension}")
            out.write(f'<image id="{sample.number}" name={name} width="{width}" height="{height}">\n'.encode())
            for each in sample.segments:
                left, top, width, height = each.box
                box = f'left="{left}" top="{top}" width="{width}" height="{height}"'
                counts = run_lengths(sample.label_map[top : top + height, left : left + width] == each.id)
                label = quoteattr(writer.work.categories.of(each) or UNKNOWN)
                shown = ", ".join(map(str, counts.tolist()))
                out.write(f'<mask label={label} rle="{shown}" {box} z_order="0"/>\n'.encode())
            out.write(b"</image>\n")

        yield add
        out.write(b"</annotations>\n")


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, " R"]:
    """Pixels outside, inside, outside and so on, row by row."""
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False))
    counts: np.ndarray = np.diff(changes, prepend=0, append=mask.size)
    return counts
