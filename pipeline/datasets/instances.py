"""Instances: what of a segment counts as one object."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffseg.cut import components
from diffseg.draw import resize_labels
from diffseg.ridges import split
from diffseg.types import IGNORE, Int
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.table.leaf_map import decode_leaf_map

SEGMENTS, COMPONENTS, RIDGES = "segments", "components", "ridges"
KINDS = (SEGMENTS, COMPONENTS, RIDGES)
NEEDED = ("leaf_map", "ridges")  # columns of uncut rows that RIDGES are made from

Instances = tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " I"]]  # the instance of each pixel, the segment of each


def check_instances(ledger: Ledger, kind: str) -> None:
    """Raises ConfigError for an unknown kind, and for ridges of a run that was labelled without them."""
    if kind not in KINDS:
        raise ConfigError(f"--instances {kind!r}: possible are {', '.join(KINDS)}")
    if kind == RIDGES and not ledger.run.segment.ridges:
        raise ConfigError(f"--instances {RIDGES}: {ledger} was labelled without them (`diffseg label --ridges`)")


def instances_of(
    kind: str,
    label_map: Int[np.ndarray, "H W"],
    stored: Mapping[str, Any],
    own: Int[np.ndarray, "h w"],
    corrected: bool = False,
) -> Instances:
    """The instances of an image; those of a segment are numbered one after the other, or by their first leaves.

    label_map: the wanted segments at any size, of which `own` is that of the row. stored: the uncut row, with NEEDED
    columns where these are ridges. corrected: by people, so that ridges, which are of leaves, are components. Raises
    ConfigError where its ridges are damaged.
    """
    if kind == SEGMENTS:
        return label_map, np.arange(int(label_map.max(initial=-1)) + 1)
    if kind == COMPONENTS or corrected:
        return components(label_map)
    try:
        parts = split(own, decode_leaf_map(stored["leaf_map"]), np.frombuffer(stored["ridges"], np.uint8))
    except (ValueError, TypeError, OSError, SyntaxError) as error:  # TypeError: null; the last two are Pillow's
        where = f"{stored['shard']}, sample {stored['index']}"
        raise ConfigError(f"{where}: no usable ridges: {error}; `diffseg verify --full` finds damage") from error
    regions = np.where(label_map == IGNORE, IGNORE, resize_labels(parts, label_map.shape))
    numbers, first, instance = np.unique(regions, return_index=True, return_inverse=True)
    void = int(numbers[0] == IGNORE)
    return instance.reshape(regions.shape) - void, label_map.ravel()[first[void:]]
