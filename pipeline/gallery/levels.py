"""Levels: an image with a tree at several cuts, from fine to coarse, among which a slider of the gallery chooses."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffseg.cut import Cut
from pipeline.gallery.html_page import GalleryMap
from pipeline.table.cuts import cuts_of

STEPS = (-3, -2, -1, 0, 1, 2, 3)  # thirds of a factor of 3: from a third of a run's own height to three times it
OWN = STEPS.index(0)


def heights_around(own: float) -> tuple[float, ...]:
    """The heights of all levels in nats, the one at OWN as it is."""
    return tuple(float(f"{own * 3 ** (step / 3):.3g}") if step else own for step in STEPS)


def at_heights(row: Mapping[str, Any], heights: Sequence[float], *, split: bool) -> tuple[GalleryMap, ...]:
    """The label maps of a row with leaf map and tree. Raises what `cuts_of` does."""
    cuts = [Cut(height=height) for height in heights]
    return tuple(
        GalleryMap(found.label_map, found.segments, found.quality, f"cut {cut.height:g}")
        for cut, found in zip(cuts, cuts_of(row, cuts, split=split), strict=True)
    )
