"""A pilot for people: every image with its labels at each threshold, side by side in the gallery, or at a cut that a
slider chooses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import BinaryIO

from pipeline.gallery.html_page import GalleryItem, GalleryMap, GalleryPage, write_gallery
from pipeline.gallery.preview import OWN
from pipeline.gallery.statistics import Distributions, Histogram
from pipeline.pilot.pilot import Pilot, Sampled
from pipeline.records import OK
from pipeline.table.label_map import decode_label_map


def write_pilot(pilot: Pilot, out: BinaryIO, model: str, facts: Sequence[tuple[str, str]] = ()) -> int:
    """Write the page; returns how many images it shows: those whose photos were kept, and those without labels.

    facts: further lines for its top.
    """
    many, what = len(pilot.at), pilot.compared
    page = GalleryPage(
        title=f"Pilot of {model}" + (f" at {many} {what}s" if many > 1 else f" at {what} {pilot.at[0].name}"),
        facts=(
            ("images", f"{len(pilot.samples):,}"),
            ("one worker", f"{pilot.rates.worker:,.2f} images/s"),
            *facts,
            ("segments an image", ", ".join(f"{at.segments:.1f} at {at.name}" for at in pilot.at)),
            ("images of one segment", ", ".join(f"{at.single:.0%} at {at.name}" for at in pilot.at)),
        ),
        statuses=tuple(sorted(pilot.statuses.items(), key=lambda pair: (pair[0] != OK, -pair[1]))),
        histograms=tuple(_histograms(pilot)),
        level=OWN if what == "cut" else None,
    )
    shown = (each for each in pilot.samples if each.photo is not None or each.rows[0].status != OK)
    return write_gallery(out, (_item(pilot, each) for each in shown), page)


def _item(pilot: Pilot, sample: Sampled) -> GalleryItem:
    first = sample.rows[0]
    return GalleryItem(
        key=first.key,
        shard=sample.shard,
        index=sample.index,
        status=first.status,
        error=first.error,
        size=(first.width, first.height) if first.width and first.height else None,
        image=sample.photo,
        maps=tuple(
            GalleryMap(decode_label_map(row.label_map), row.segments, row.quality, f"{pilot.compared} {at.name}")
            for row, at in zip(sample.rows, pilot.at, strict=False)  # a single row where there are no labels
            if row.label_map
        ),
        random=True,
    )


def _histograms(pilot: Pilot) -> Iterator[Histogram]:
    """Segments an image at each threshold or cut."""
    for number, at in enumerate(pilot.at):
        counts = Distributions()
        for sample in pilot.samples:
            if sample.rows[0].status == OK:
                row = sample.rows[number]
                counts.add(
                    {"status": OK, "quality": row.quality, "segments": [asdict(segment) for segment in row.segments]}
                )
        segments = next(histogram for histogram in counts.histograms() if histogram.filter == "segments")
        yield replace(segments, title=f"{segments.title} at {pilot.compared} {at.name}", filter=None)
