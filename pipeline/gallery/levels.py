"""Levels: an image with a tree at several cuts, from fine to coarse, among which a slider of the gallery chooses."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffseg.cut import Cut
from diffseg.types import Segment
from pipeline.gallery.html_page import GalleryMap
from pipeline.table.cuts import at_cut
from pipeline.table.label_map import decode_label_map

STEPS = (-3, -2, -1, 0, 1, 2, 3)  # thirds of a factor of 3: from a third of a run's own height to three times it
OWN = STEPS.index(0)


def heights_around(own: float) -> tuple[float, ...]:
    """The heights of all levels in nats, the one at OWN as it is."""
    return tuple(float(f"{own * 3 ** (step / 3):.3g}") if step else own for step in STEPS)


def at_heights(row: Mapping[str, Any], heights: Iterable[float]) -> tuple[GalleryMap, ...]:
    """The label maps of a row with leaf map and tree. Raises what `at_cut` does."""
    return tuple(labels_of(at_cut(row, Cut(height=height)), f"cut {height:g}") for height in heights)


def labels_of(row: Mapping[str, Any], caption: str = "") -> GalleryMap:
    """The label map of a row that has one."""
    segments = tuple(Segment(**{**segment, "box": tuple(segment["box"])}) for segment in row["segments"])
    return GalleryMap(decode_label_map(row["label_map"]), segments, row["quality"], caption)
