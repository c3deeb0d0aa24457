"""Corrections taken: what people gave back, or call otherwise now, as the next revision of a run's corrections."""

import hashlib
import re
from collections.abc import Iterable
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
from pipeline.table.label_map import decode_label_map, encode_label_map
from pipeline.table.window_metadata import fields_of

IDENTITY = re.compile(r"-([0-9a-f]{12})_([0-9]{1,18})$")  # the end of a shard's id, and the index, in a generated name
NEEDED = ("key", "shard", "index", "width", "height", "label_map", "segments")


@dataclass(frozen=True, slots=True)
class Taken:
    """A revision. images, segments: that are otherwise. added: categories. left_out: images without a difference."""

    table: str
    images: int
    segments: int
    added: list[str]
    left_out: int


def take(ledger: Ledger, given: Iterable[Given]) -> Taken:
    """Keep images as people want them, over what was corrected before; a segment that they changed has the score 1.

    ledger: read as the export was that they corrected. Images without any mask are left out.
    Raises ConfigError for images that the run has not, or not so, and where none is otherwise.
    """
    before, known = _before(ledger)
    shards, made, changed = {id_[-12:]: id_ for id_ in ledger.shards}, dict[Any, Row](), 0
    wanted = dict[tuple[str, int], tuple[str, bytes, list[str | None]]]()
    for each in given:
        found = IDENTITY.search(PurePosixPath(each.name).stem)
        at = (shards.get(found.group(1), ""), int(found.group(2))) if found else ("", 0)
        if not at[0] or at in wanted:
            why = "is there twice" if at[0] else "is no image of this run, by its name"
            raise ConfigError(f"{each.name}: {why}; `select` and exports for CVAT name images so that they are found")
        called = (name if name in known else before.renamed.get(name, name) for name in each.categories)
        names = [None if name == OBJECT and name not in known else name for name in called]
        wanted[at] = each.name, encode_label_map(each.label_map), names
    among = frozenset(wanted)
    selection = Selection(among=among)
    for row in ledger.rows(NEEDED, windows=selection.windows(ledger)):
        if selection.wants(row) and row["label_map"] is not None:
            one, more = _corrected(row, *wanted.pop(at := (row["shard"], row["index"])))
            changed += more
            made |= {at: one} if more else {}
    if wanted or not made:
        lost = next((f"{name}: has no labels in {ledger}" for name, _, _ in wanted.values()), "")
        raise ConfigError(lost or "no image is otherwise than it was: nothing to import")
    used = {each["category"] for row in made.values() for each in row["segments"]} - {None}
    named = (*before.named, *sorted(used - {*before.named}))
    table = keep_corrections(ledger, replace(before, named=named, images={**before.images, **made}))
    return Taken(table, len(made), changed, sorted(used - known), len(among) - len(made))


def rename(ledger: Ledger, renamed: dict[str, str | None]) -> str:
    """Call categories otherwise, two alike to merge them, or None to drop them; returns the revision.

    Raises ConfigError for categories that the ledger's table and its corrections do not have.
    """
    before, known = _before(ledger)
    if lost := [name for name in renamed if name not in known]:
        there = ", ".join(sorted(known)) or "none: name their table with --categories"
        raise ConfigError(f"{ledger.categories or ledger} has no category {lost[0]!r}; there are {there}")
    now = dict[Any, str | None]({name: name for name in (None, *before.named, *before.renamed.values())} | renamed)
    images = {
        at: row | {"segments": [each | {"category": now[each["category"]]} for each in row["segments"]]}
        for at, row in before.images.items()
    }
    named = tuple(dict.fromkeys(name for name in map(now.get, before.named) if name))
    renamed = {**renamed, **{old: now[name] for old, name in before.renamed.items()}}
    return keep_corrections(ledger, replace(before, named=named, renamed=renamed, images=images))


def _before(ledger: Ledger) -> tuple[Corrections, set[str]]:
    """What was corrected so far, and all categories that are known."""
    before = read_corrections(ledger) or Corrections()
    return before, {*before.named, *(each.name for each in ledger.categories_table)}


def _corrected(row: Row, name: str, png: bytes, names: list[str | None]) -> tuple[Row, int]:
    """A row as people want it, and how many segments are otherwise; one of the same pixels keeps its id and score."""
    given, size = decode_label_map(png), (row["height"], row["width"])
    if given.shape != size:
        raise ConfigError(f"{name}: its masks are {given.shape}, the photo is {size} (height, width)")

    def digest(mask: np.ndarray) -> bytes:
        return hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()

    own, regions = resize_labels(decode_label_map(row["label_map"]), size), np.unique(given[given != IGNORE]).tolist()
    before = {digest(own == each["id"]): each for each in row["segments"] if (own == each["id"]).any()}
    kept = {region: each for region in regions if (each := before.get(digest(given == region)))}
    used = {each["id"] for each in kept.values()}
    free = (id_ for id_ in count() if id_ not in used)
    order = sorted(regions, key=lambda region: kept[region]["id"] if region in kept else next(free))
    renumbered = np.full(len(names) + 1, IGNORE, np.int32)  # the last is of IGNORE itself
    renumbered[order] = range(len(order))
    label_map = renumbered[given]
    areas, boxes = np.bincount(label_map.ravel() + 1)[1:].tolist(), map(box_of, ndimage.find_objects(label_map + 1))
    scores = (kept[region]["score"] if region in kept else 1.0 for region in order)
    categories = (names[region] for region in order)
    segments = [*map(Segment, range(len(order)), areas, boxes, scores, categories)]
    same = sum(each["category"] == names[region] for region, each in kept.items())
    made = {"key": row["key"], "shard": row["shard"], "index": row["index"], "label_map": encode_label_map(label_map)}
    made |= {"num_segments": len(order), "segments": [*map(fields_of, segments)], "quality": quality(segments)}
    return made, (len(before) + len(order) - len(kept) - same) * bool(order)
