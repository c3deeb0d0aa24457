"""Corrections taken: what people gave back, or call otherwise now, as a revision of the run's table of corrections."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from diffseg.types import IGNORE, Int32
from pipeline.datasets.samples import LabelledSample, Samples
from pipeline.datasets.selection import Part, RowCounts, Selection
from pipeline.derived.corrections import COLUMNS, NAME, Corrections, Vocabulary, corrections_of
from pipeline.derived.note import Note
from pipeline.derived.write import write
from pipeline.errors import ConfigError
from pipeline.exports.cvat import UNKNOWN
from pipeline.review.given import Given
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import Names, identity_in
from pipeline.table.label_map import decode_label_map, encode_label_map

Row = dict[str, Any]
Images = Mapping[tuple[str, int], Mapping[int, list[Row]]]  # rows of corrected images by shard and window, and index


@dataclass(frozen=True, slots=True)
class Taken:
    """A revision. segments: of its images that are otherwise. added: categories.

    alike, empty: images that were left out because they are as they were, or have no mask.
    """

    table: str
    images: int
    segments: int
    added: tuple[str, ...]
    alike: int
    empty: int


def take(ledger: Ledger, given: Iterable[Given], confirmed: bool) -> Taken:
    """Keep images as people want them, over what was corrected before; a segment that they changed has the score 1.

    ledger: read as the export was that they corrected. confirmed: keep images that are as they were, too.
    Raises ConfigError for images that the run has not, or not so.
    """
    people, alike, empty = corrections_of(ledger, None), 0, 0
    before = people.vocabulary if people else Vocabulary()
    known = {*before.named, *(each.name for each in ledger.categories_table)}
    shards = {id_[-12:]: id_ for id_ in ledger.shards}
    wanted, digest = dict[tuple[str, int], tuple[str, bytes, list[str | None]]](), hashlib.sha256()
    for each in given:
        end, index = identity_in(PurePosixPath(each.name).stem) or ("", 0)
        if (at := (shards.get(end, ""), index)) in wanted or not at[0]:
            why = "is there twice" if at[0] else "is no image of this run, by its name"
            raise ConfigError(f"{each.name}: {why}; exports for CVAT name images so that they are found again")
        if each.label_map.max() == IGNORE:
            empty += 1
            continue
        called = [name if name in known else before.renamed.get(name, name) for name in each.categories]
        names = [None if name == UNKNOWN and name not in known else name for name in called]
        wanted[at] = each.name, encode_label_map(each.label_map), names
        digest.update(repr(wanted[at]).encode())
    images, changed = defaultdict[tuple[str, int], dict[int, list[Row]]](dict), 0
    for sample in _samples(ledger, wanted):
        shard, index = sample.row["shard"], sample.row["index"]
        rows, more = _corrected(sample, *wanted.pop((shard, index)))
        alike, changed = alike + (not more), changed + more
        if more or confirmed:
            images[shard, index // ledger.run.window][index] = rows
    if wanted or not images:
        name = next((name for name, _, _ in wanted.values()), "")
        none = "no image is otherwise: nothing to import; --confirmed says that they were looked at"
        raise ConfigError(f"{name}: has no labels in {ledger}" if name else none)
    used = {row["category"] for own in images.values() for rows in own.values() for row in rows} - {None}
    vocabulary = Vocabulary((*before.named, *sorted(used - {*before.named})), before.renamed)
    table = _keep(ledger, people, vocabulary, images, digest.hexdigest())
    added, kept = tuple(sorted(used - known)), sum(map(len, images.values()))
    return Taken(table, kept, changed, added, 0 if confirmed else alike, empty)


def rename(ledger: Ledger, renamed: Mapping[str, str | None]) -> str:
    """Call categories otherwise, two alike to merge them, or None to drop them; returns the table's revision.

    Raises ConfigError for categories that the ledger's table and its corrections do not have.
    """
    people = corrections_of(ledger, None)
    before = people.vocabulary if people else Vocabulary()
    known = {*before.named, *(each.name for each in ledger.categories_table)}
    if lost := [name for name in renamed if name not in known]:
        there = ", ".join(sorted(known)) or "none: name their table with --categories"
        raise ConfigError(f"{ledger.categories or ledger} has no category {lost[0]!r}; there are {there}")
    named = dict.fromkeys(name for name in (renamed.get(each, each) for each in before.named) if name)
    vocabulary = Vocabulary((*named,), {**renamed, **{k: renamed.get(v or "", v) for k, v in before.renamed.items()}})
    images: dict[tuple[str, int], dict[int, list[Row]]] = {}
    for window in people.note.places if people else ():
        own = _before(people, window.shard, window.window)
        for row in (row for rows in own.values() for row in rows):
            row["category"] = renamed.get(row["category"], row["category"])
        images[window.shard, window.window] = own
    return _keep(ledger, None, vocabulary, images, "")


def _keep(ledger: Ledger, people: Corrections | None, words: Vocabulary, images: Images, sha256: str) -> str:
    """Write a revision. people: the one before, which is kept where it has other images; None: nothing of it is."""
    parts = people.note.parts if people else ()
    facts = {**asdict(words), "given_sha256": sha256}
    note = Note(command=f"diffseg import {ledger}", columns=COLUMNS, parameters=facts, parts=parts)

    def values(window: WindowObject) -> Iterator[Row]:
        at = window.shard, window.window
        own = {**_before(people, *at), **images[at]}
        return (row for index in sorted(own) for row in own[index])

    return f"{NAME}/{write(ledger, NAME, note, values, only=images.keys())[1]}"


def _before(people: Corrections | None, shard: str, window: int) -> dict[int, list[Row]]:
    found = people.images(shard, window) if people else {}
    return {
        index: [{"index": index, "segment": at, **values} for at, values in sorted(own.items())]
        for index, own in found.items()
    }


def _samples(ledger: Ledger, wanted: Iterable[tuple[str, int]]) -> Iterator[LabelledSample]:
    """The labelled images among these, at the size of their photos."""
    size, selection = ledger.run.window, Selection(among=frozenset(wanted))
    if not (windows := tuple(selection.windows(ledger))):
        return iter(())
    part = Part(0, windows, tuple(range(0, size * len(windows), size)), size * len(windows))
    return Samples(ledger, selection, Names(), None).of(part, RowCounts())


def _corrected(sample: LabelledSample, name: str, png: bytes, names: list[str | None]) -> tuple[list[Row], int]:
    """Rows of an image, and how many of its segments are otherwise; one that is as it was keeps its id and score."""
    given, own = decode_label_map(png), sample.label_map
    if given.shape != own.shape:
        sizes = f"its masks are {given.shape}, the photo is {own.shape} (height, width)"
        raise ConfigError(f"{name}: {sizes}")
    segments = {each.id: each for each in sample.segments}
    areas, regions, ids = (
        np.bincount(given.ravel() + 1)[1:],
        np.unique(given[given != IGNORE]).tolist(),
        dict[int, int](),
    )
    both = (given != IGNORE) & (own != IGNORE)
    pairs, pixels = np.unique(np.stack([given[both], own[both]]), axis=1, return_counts=True)
    same = set[int]()
    for n, region, segment in sorted(zip((-pixels).tolist(), *pairs.tolist(), strict=True)):
        if region not in ids and segment not in ids.values():
            ids[region] = segment
            same |= {region} if -n == areas[region] == segments[segment].area else set()
    fresh = count(max(segments, default=-1) + 1)
    rows, ordered = list[Row](), sorted(regions, key=lambda each: ids[each] if each in ids else next(fresh))
    renumbered: Int32[np.ndarray, "H W"] = np.full(len(names) + 1, IGNORE, np.int32)  # the last is of IGNORE itself
    renumbered[ordered] = range(len(ordered))
    stored, changed = encode_label_map(renumbered[given]), len(segments) - len(ids) + len(regions) - len(same)
    for at, region in enumerate(ordered):
        score = segments[ids[region]].score if region in same else 1.0
        changed += region in same and names[region] != segments[ids[region]].category
        rows.append({"index": sample.row["index"], "segment": at, "label_map": None if at else stored})
        rows[-1] |= {"quality": None, "score": score, "category": names[region]}
    rows[0]["quality"] = None if changed else sample.row["quality"]
    return rows, int(changed)
