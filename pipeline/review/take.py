"""Corrections taken: what people gave back, or call otherwise now, as the next revision of a run's corrections."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from scipy import ndimage

from diffseg.cut import box_of, quality
from diffseg.draw import resize_labels
from diffseg.types import IGNORE, Segment
from pipeline.datasets.selection import Selection
from pipeline.derived.corrections import Corrections, Row, keep_corrections, read_corrections
from pipeline.errors import ConfigError
from pipeline.exports.categories import OBJECT
from pipeline.review.given import Given
from pipeline.run.ledger import Ledger
from pipeline.storage.names import identity_in
from pipeline.table.label_map import decode_label_map, encode_label_map
from pipeline.table.window_metadata import fields_of

NEEDED = ("key", "shard", "index", "width", "height", "label_map", "segments")


@dataclass(frozen=True, slots=True)
class Taken:
    """A revision. images, segments: that are otherwise. added: categories.

    left_out: images that are as they were, or have no mask at all.
    """

    table: str
    images: int
    segments: int
    added: tuple[str, ...]
    left_out: int


def take(ledger: Ledger, given: Iterable[Given]) -> Taken:
    """Keep images as people want them, over what was corrected before; a segment that they changed has the score 1.

    ledger: read as the export was that they corrected. Raises ConfigError for images that the run has not, or not so.
    """
    before = read_corrections(ledger) or Corrections()
    known = {*before.named, *(each.name for each in ledger.categories_table)}
    shards = {id_[-12:]: id_ for id_ in ledger.shards}
    wanted, images, changed = dict[tuple[str, int], tuple[str, bytes, list[str | None]]](), dict[Any, Row](), 0
    left_out = 0
    for each in given:
        end, index = identity_in(PurePosixPath(each.name).stem) or ("", 0)
        if (at := (shards.get(end, ""), index)) in wanted or not at[0]:
            why = "is there twice" if at[0] else "is no image of this run, by its name"
            raise ConfigError(f"{each.name}: {why}; exports for CVAT name images so that they are found again")
        if each.label_map.max() == IGNORE:
            left_out += 1
            continue
        called = [name if name in known else before.renamed.get(name, name) for name in each.categories]
        names = [None if name == OBJECT and name not in known else name for name in called]
        wanted[at] = each.name, encode_label_map(each.label_map), names
    selection = Selection(among=frozenset(wanted))
    for row in ledger.rows(NEEDED, windows=selection.windows(ledger)):
        if selection.wants(row) and row["label_map"] is not None:
            made, more = _corrected(row, *wanted.pop((row["shard"], row["index"])))
            images |= {(row["shard"], row["index"]): made} if more else {}
            changed, left_out = changed + more, left_out + (not more)
    for name, _, _ in wanted.values():
        raise ConfigError(f"{name}: has no labels in {ledger}")
    if not images:
        raise ConfigError("no image is otherwise than it was: nothing to import")
    used = {each["category"] for row in images.values() for each in row["segments"]} - {None}
    named = (*before.named, *sorted(used - {*before.named}))
    table = keep_corrections(ledger, replace(before, named=named, images={**before.images, **images}))
    return Taken(table, len(images), changed, tuple(sorted(used - known)), left_out)


def rename(ledger: Ledger, renamed: Mapping[str, str | None]) -> str:
    """Call categories otherwise, two alike to merge them, or None to drop them; returns the revision.

    Raises ConfigError for categories that the ledger's table and its corrections do not have.
    """
    before = read_corrections(ledger) or Corrections()
    known = {*before.named, *(each.name for each in ledger.categories_table)}
    if lost := [name for name in renamed if name not in known]:
        there = ", ".join(sorted(known)) or "none: name their table with --categories"
        raise ConfigError(f"{ledger.categories or ledger} has no category {lost[0]!r}; there are {there}")

    def now(name: str | None) -> str | None:
        return renamed.get(name, name) if name else None

    images = {
        at: row | {"segments": [each | {"category": now(each["category"])} for each in row["segments"]]}
        for at, row in before.images.items()
    }
    named = tuple(dict.fromkeys(name for name in map(now, before.named) if name))
    renamed = {**renamed, **{old: now(name) for old, name in before.renamed.items()}}
    return keep_corrections(ledger, replace(before, named=named, renamed=renamed, images=images))


def _corrected(row: Row, name: str, png: bytes, names: list[str | None]) -> tuple[Row, int]:
    """A row as people want it, and how many segments are otherwise; one of the same pixels keeps its id and score."""
    given, size = decode_label_map(png), (row["height"], row["width"])
    if given.shape != size:
        raise ConfigError(f"{name}: its masks are {given.shape}, the photo is {size} (height, width)")
    own = resize_labels(decode_label_map(row["label_map"]), size)
    before = {_digest(own == each["id"]): each for each in row["segments"] if (own == each["id"]).any()}
    regions = np.unique(given[given != IGNORE]).tolist()
    kept = {region: before.get(_digest(given == region)) for region in regions}
    used = {each["id"] for each in kept.values() if each}
    free = (id_ for id_ in count() if id_ not in used)
    order = sorted(regions, key=lambda region: each["id"] if (each := kept[region]) else next(free))
    renumbered = np.full(len(names) + 1, IGNORE, np.int32)  # the last is of IGNORE itself
    renumbered[order] = range(len(order))
    label_map = renumbered[given]
    areas, boxes, segments = (
        np.bincount(label_map.ravel() + 1)[1:],
        ndimage.find_objects(label_map + 1),
        list[Segment](),
    )
    for at, region in enumerate(order):
        score = each["score"] if (each := kept[region]) else 1.0
        segments.append(Segment(at, int(areas[at]), box_of(boxes[at]), score, names[region]))
    same = sum(each is not None and each["category"] == names[region] for region, each in kept.items())
    found = {"label_map": encode_label_map(label_map), "num_segments": len(segments), "quality": quality(segments)}
    identity = {name: row[name] for name in ("key", "shard", "index")}
    return identity | found | {"segments": [*map(fields_of, segments)]}, len(before) + len(regions) - len(used) - same


def _digest(mask: np.ndarray) -> bytes:
    return hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
