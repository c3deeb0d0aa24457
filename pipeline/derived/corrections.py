"""Corrections: images as people want them, which every reader prefers to what was labelled.

derived/corrections/<revision>/<digest>.parquet   rows of all corrected images; their label maps are of the photo's size
derived/corrections/<revision>/note.json          written last; its parameters say what categories are called

All are in memory, some 5 kB an image. An image whose window is labelled again stays corrected.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import documents
from pipeline.derived.note import FOLDER, NOTE, Note, Part, put, read_note, revisions
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.ledger import Ledger
from pipeline.table.filter import CATEGORIES, PREDICTED
from pipeline.table.records import decode_rows, encode_rows

NAME, NONE = "corrections", "none"  # the table that readers take by themselves; what they are told to take none
CORRECTED = "corrected"  # in rows that people corrected
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Corrections:
    """Rows of images by shard and index. id: NAME/REVISION.

    named: categories that people used. renamed: what those of other tables are called now; None: dropped.
    """

    id: str = NAME
    named: tuple[str, ...] = ()
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    images: Mapping[tuple[str, int], Row] = field(default_factory=dict)

    def categories(self, listed: Iterable[Category]) -> tuple[Category, ...]:
        """Categories of a table as they are called now, and after them those that only people named."""
        found = dict[str, Category]()
        for each in listed:
            if name := self.renamed.get(each.name, each.name):
                found.setdefault(name, replace(each, name=name))
        for name in self.named:
            found.setdefault(name, Category(max((each.id for each in found.values()), default=0) + 1, name))
        return tuple(found.values())

    def corrected(self, row: Row) -> Row:
        """A row as people want it; any other as it is."""
        if (own := self.images.get((row["shard"], row["index"]))) is None:
            return row
        nameless = {} if CATEGORIES in row else {"category": None}
        made: Row = own | {"segments": [each | nameless for each in own["segments"]], PREDICTED: own["quality"]}
        made[CATEGORIES] = {each["category"] for each in own["segments"]}
        return row | {name: made[name] for name in made.keys() & row.keys()} | {CORRECTED: True}


LARGEST = 1 << 34  # bytes of one revision: label maps of a million images


def read_corrections(ledger: Ledger, table: str | None = None) -> Corrections | None:
    """The corrections by NAME or NAME/REVISION; None: the latest, if there are any. Raises ConfigError."""
    if table == NONE or (table is None and NAME not in revisions(ledger)):
        return None
    note, revision = read_note(ledger, table or NAME)
    try:
        known = documents.validated(Corrections, {name: note.parameters[name] for name in ("named", "renamed")})
        rows = _rows(ledger, f"{FOLDER}/{NAME}/{note.parts[0].name}")
        shown = {(row["shard"], row["index"]): row for row in rows if not ledger.is_withdrawn(row["key"])}
        return replace(known, id=f"{NAME}/{revision}", images=shown)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"{ledger}/{FOLDER}/{NAME}/{revision}: no corrections of `diffseg import`: {error}"
        ) from error


def _rows(ledger: Ledger, name: str) -> list[Row]:
    try:
        return decode_rows(ledger.store.get(name, LARGEST))[0]
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{ledger}/{name}: no corrections of `diffseg import`: {error}") from error


def keep_corrections(ledger: Ledger, made: Corrections) -> str:
    """Write the next revision; returns its id. Raises ConfigError where another writer had it first."""
    revision, data = revisions(ledger).get(NAME, 0) + 1, encode_rows(list(made.images.values()))
    name = f"{revision}/{hashlib.blake2b(data, digest_size=6).hexdigest()}.parquet"
    own = {(shard, index // ledger.run.window) for shard, index in made.images}
    windows = tuple(each for each in ledger.windows() if (each.shard, each.window) in own)
    facts = {"named": made.named, "renamed": made.renamed}
    parts = (Part(name, len(data), windows, ()),)
    put(ledger, f"{FOLDER}/{NAME}/{name}", data)
    note = Note(command=f"diffseg import {ledger}", columns={}, parameters=facts, parts=parts)
    put(ledger, f"{FOLDER}/{NAME}/{revision}/{NOTE}", documents.to_json(note))
    return f"{NAME}/{revision}"


def former_corrections(ledger: Ledger) -> list[str]:
    """Objects that hold what was withdrawn, after a revision without it was written where the latest is one of them."""
    stale = list[str]()
    for name, _ in list(ledger.store.list(f"{FOLDER}/{NAME}/")):
        if name.endswith(".parquet"):
            stale += [name] if any(ledger.is_withdrawn(row["key"]) for row in _rows(ledger, name)) else []
    if stale and (latest := read_corrections(ledger)) and any(f"/{latest.id}/" in name for name in stale):
        keep_corrections(ledger, latest)
    return [*stale, *(f"{name.rpartition('/')[0]}/{NOTE}" for name in stale)]
