"""Derived tables joined onto a run as it is read: what readers see of `--calibration` and `--categories`, and of
corrections.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from diffseg.cut import Cut
from pipeline import documents
from pipeline.derived.corrections import NAME, NONE, Corrections, read_corrections
from pipeline.derived.note import FOLDER, Note, parse_table, read_note
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.ledger import Ledger
from pipeline.table.filter import CATEGORIES, PREDICTED
from pipeline.table.values import read_values

CATEGORY = "category"  # column of a category's id; null: unknown
_ADDED = {PREDICTED, CATEGORIES}
_CHANGED = frozenset({"segments", "quality", *_ADDED})
_CORRECTED = _CHANGED | {"label_map", "num_segments"}
logger = logging.getLogger(__name__)
KEPT = 4  # windows whose values are in memory: about 5 MB each where images have 16 segments

Row = dict[str, Any]


class DerivedTable:
    """A table of a run, opened by NAME (its latest revision) or NAME/REVISION.

    Raises ConfigError where there is no such table, or it lacks one of the columns.
    """

    def __init__(self, ledger: Ledger, table: str, columns: Sequence[str]) -> None:
        self.ledger, self.columns = ledger, tuple(columns)
        self.note, self.revision = read_note(ledger, table)
        self.name = parse_table(table)[0]
        if lost := [name for name in columns if name not in self.note.columns]:
            there = ", ".join(self.note.columns)
            raise ConfigError(
                f"{self}: has no column {', '.join(lost)}, it has {there}: it was made by another command"
            )
        places, current = self.note.places, list(ledger.windows())
        self.windows = len(current)
        self._places = {(one.shard, one.window): places[one] for one in current if one in places}
        self._values = lru_cache(KEPT)(self._read)

    def __str__(self) -> str:
        return f"{self.ledger}/{FOLDER}/{self.id}"

    @property
    def id(self) -> str:
        """NAME/REVISION."""
        return f"{self.name}/{self.revision}"

    @property
    def outdated(self) -> str | None:
        """What to tell where windows were added or replaced since it was made; None where it is whole."""
        made, command = len(self._places), self.note.command
        if made == self.windows:
            return None
        return f"{self} was made from {made:,} of {self.windows:,} windows: run `{command} --extend`"

    def join(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows with `shard`, `index` and `segments`, each segment with the columns of this table too; see `of`."""
        for row in rows:
            values = self.of(row)
            yield {**row, "segments": row["segments"] and [s | v for s, v in zip(row["segments"], values, strict=True)]}

    def of(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The columns of this table for each segment of a row, in order; None where the table has no value.

        Memory holds the values of KEPT windows. Raises ConfigError where a part is missing or damaged.
        """
        if not row["segments"]:
            return []
        values = self._values(row["shard"], row["index"] // self.ledger.run.window)
        nothing = dict.fromkeys(self.columns)
        return [values.get((row["index"], segment["id"]), nothing) for segment in row["segments"]]

    def _read(self, shard: str, window: int) -> dict[tuple[int, int], dict[str, Any]]:
        if (shard, window) not in self._places:
            return {}
        part, group = self._places[shard, window]
        path = f"{FOLDER}/{self.name}/{part.name}"
        try:
            with self.ledger.store.reader(path) as stream:
                return read_values(stream, group, shard, self.columns)
        except (FileNotFoundError, ValueError) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else str(error)
            again = self.note.command
            raise ConfigError(f"{self.ledger}/{path}: {why}; make the table again (`{again}`)") from error


class JoinedLedger(Ledger):
    """A run read with derived tables.

    With a calibration, rows have the predicted IoU as `score` of each segment, and its mean by area as `quality` and as
    `predicted_iou`: null where there is one segment or the table lacks the window, whose scores are then 0. With
    categories, each segment has the name of its own, null where that is unknown, and `categories` is the set of them.
    An image that people corrected has their label map, segments and categories at every cut.
    """

    joins: tuple[Callable[[Row], Row], ...] = ()  # what tables make of a row
    changed: frozenset[str] = frozenset()  # columns that they change or add

    def __reduce__(self) -> tuple[Any, ...]:
        return open_run, (self.store.url, self.cut, self.calibration, self.categories, self.corrections or NONE)

    @property
    def remade(self) -> frozenset[str]:
        """See `Ledger.remade`."""
        return super().remade | self.changed

    def needed(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """See `Ledger.needed`."""
        if columns is not None and self.changed & set(columns):
            columns = list({*columns, "shard", "index", "segments"} - _ADDED)
        return super().needed(columns)

    def at_cut(self, row: Row, cut: Cut | None = None) -> Row:
        """See `Ledger.at_cut`."""
        row = super().at_cut(row, cut)
        if "segments" in row:
            for made in self.joins:
                row = made(row)
        return row


def open_run(
    url: str,
    cut: Cut | None = None,
    calibration: str | None = None,
    categories: str | None = None,
    corrections: str | None = None,
) -> JoinedLedger:
    """Open a run at a cut, with a calibration and categories by NAME or NAME/REVISION; None: as it was labelled.

    corrections: None: the latest, if there are any; NONE: none. Their name as `categories`: only what people named.
    Raises ConfigError where there is no such run, cut or table, or a table is of other segments.
    """
    ledger = JoinedLedger.open(url, cut=cut)
    people = read_corrections(ledger, corrections)
    if calibration is not None:
        table = _opened(ledger, calibration, PREDICTED)
        ledger.joins, ledger.calibration, ledger.changed = (partial(_scored, table),), table.id, _CHANGED
    if categories is not None:
        of = None if people and parse_table(categories)[0] == NAME else _opened(ledger, categories, CATEGORY)
        listed, called = categories_of(of.note, str(of)) if of else (), people or Corrections()
        ledger.categories_table, ledger.categories = called.categories(listed), of.id if of else called.id
        names = {each.id: called.renamed.get(each.name, each.name) for each in listed}
        ledger.joins, ledger.changed = (*ledger.joins, partial(_named, names, of)), _CHANGED
    if people:
        ledger.corrections, ledger.changed, ledger.joins = people.id, _CORRECTED, (*ledger.joins, people.corrected)
    return ledger


def categories_of(note: Note, table: str) -> tuple[Category, ...]:
    """The categories that a note lists. table: its name in errors. Raises ConfigError where it lists none, or badly."""
    try:
        found = tuple(documents.validated(Category, each) for each in note.parameters["categories"])
        counted = Counter(value for each in found for value in (each.id, each.name))
        if twice := [value for value, times in counted.items() if times > 1]:
            raise ValueError(f"{twice[0]!r} is there twice")
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{table}: its note has no list of categories: {error}; make the table again") from error


def _opened(ledger: Ledger, name: str, column: str) -> DerivedTable:
    table = DerivedTable(ledger, name, [column])
    if table.note.cut != (str(ledger.cut) if ledger.cut else None):
        made = f"at the cut {table.note.cut}" if table.note.cut else "as they were labelled"
        raise ConfigError(f"{table} is of segments {made}: read the run so, or make the table again at the other cut")
    if table.outdated:
        logger.warning("%s", table.outdated)
    return table


def _scored(table: DerivedTable, row: Row) -> Row:
    segments, found = row["segments"] or (), [each[PREDICTED] for each in table.of(row)]
    mean = None
    if len(found) > 1 and None not in found:
        areas = [segment["area"] for segment in segments]
        mean = math.fsum(area * value for area, value in zip(areas, found, strict=True)) / sum(areas)
    scored = [{**segment, "score": value or 0.0} for segment, value in zip(segments, found, strict=True)]
    return {**row, "segments": row["segments"] and scored, "quality": mean, PREDICTED: mean}


def _named(names: Mapping[int, str | None], table: DerivedTable | None, row: Row) -> Row:
    ids: list[Any] = [each[CATEGORY] for each in table.of(row)] if table else [None for _ in row["segments"] or ()]
    if lost := {*ids} - {*names, None}:
        raise ConfigError(f"{table}: category {lost.pop()} is not in its note; make the table again")
    pairs = zip(row["segments"] or (), map(names.get, ids), strict=True)
    segments = [{**each, CATEGORY: name} for each, name in pairs]
    return {**row, "segments": row["segments"] and segments, CATEGORIES: row["segments"] and {*map(names.get, ids)}}
