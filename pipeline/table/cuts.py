"""Rows at another cut than the one that was stored: their labels are made anew from leaf map and tree."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffseg.cut import Cut, segmentation
from diffseg.types import Segmentation
from pipeline.errors import ConfigError
from pipeline.table.leaf_map import decode_leaf_map
from pipeline.table.trees import decode_tree
from pipeline.table.window_metadata import as_stored, fields_of

OF_CUT = ("label_map", "num_segments", "segments", "quality")  # columns that another cut changes
_NEEDED = ("leaf_map", "tree")


def uncut(columns: Sequence[str] | None) -> Sequence[str] | None:
    """The columns to read for these ones at any cut."""
    if columns is None or not set(columns) & set(OF_CUT):
        return columns
    return [*(name for name in columns if name not in (*OF_CUT, *_NEEDED)), *_NEEDED]


def at_cut(row: Mapping[str, Any], cut: Cut, *, split: bool = False) -> dict[str, Any]:
    """A row of `uncut` columns with its labels at a cut; the label map is no PNG but an array.

    split: see `segmentation`. Raises ConfigError where leaf map or tree are damaged.
    """
    made = {name: value for name, value in row.items() if name not in _NEEDED}
    if not set(_NEEDED) <= row.keys():
        return made
    if row["leaf_map"] is None or row["tree"] is None:
        return made | dict.fromkeys(OF_CUT)
    [found] = cuts_of(row, [cut], split=split)
    segments = [fields_of(segment) | {"score": as_stored(segment.score)} for segment in found.segments]
    values = (found.label_map, len(segments), segments, as_stored(found.quality))
    return made | dict(zip(OF_CUT, values, strict=True))


def cuts_of(row: Mapping[str, Any], cuts: Iterable[Cut], *, split: bool = False) -> list[Segmentation]:
    """The labels of a row with leaf map and tree at several cuts. Raises ConfigError where these are damaged."""
    try:
        leaf_map, tree = decode_leaf_map(row["leaf_map"]), decode_tree(row["tree"])
        return [segmentation(leaf_map, tree, cut.of(tree), split=split) for cut in cuts]
    except (TypeError, ValueError) as error:  # the first: one of the two is not there
        raise ConfigError(f"a tree that cannot be cut: {error}; `diffseg verify --full` finds damage") from error
