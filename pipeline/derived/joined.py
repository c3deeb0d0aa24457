"""A run joined with derived tables: what every reader sees that is given `--calibration` or `--categories`."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from diffseg.cut import Cut
from pipeline import documents
from pipeline.derived.join import DerivedTable
from pipeline.derived.note import Note
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.ledger import Ledger
from pipeline.table.filter import CATEGORIES, PREDICTED

CATEGORY = "category"  # column of a category's id; null: unknown
_ADDED = {PREDICTED, CATEGORIES}
_CHANGED = {"segments", "quality", *_ADDED}
logger = logging.getLogger(__name__)

Row = dict[str, Any]
Values = Sequence[Mapping[str, Any]]  # of a table, for each segment of a row


class JoinedLedger(Ledger):
    """A run read with derived tables.

    With a calibration, rows have the predicted IoU as `score` of each segment, and its mean by area as `quality` and as
    `predicted_iou`: null where there is one segment or the table lacks the window, whose scores are then 0. With
    categories, each segment has the name of its own, null where that is unknown, and `categories` is the set of them.
    """

    joins: tuple[tuple[DerivedTable, Callable[[Row, Values], Row]], ...] = ()  # tables, and what they make of a row

    def __reduce__(self) -> tuple[Any, ...]:
        return open_run, (self.store.url, self.cut, self.calibration, self.categories)

    @property
    def remade(self) -> frozenset[str]:
        """See `Ledger.remade`."""
        return super().remade | _CHANGED

    def needed(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """See `Ledger.needed`."""
        if columns is not None and _CHANGED & set(columns):
            columns = list({*columns, "shard", "index", "segments"} - _ADDED)
        return super().needed(columns)

    def at_cut(self, row: Row, cut: Cut | None = None) -> Row:
        """See `Ledger.at_cut`."""
        row = super().at_cut(row, cut)
        if "segments" in row:
            for table, made in self.joins:
                row = made(row, table.of(row))
        return row


def open_run(url: str, cut: Cut | None = None, calibration: str | None = None, categories: str | None = None) -> Ledger:
    """Open a run at a cut, with a calibration and categories by NAME or NAME/REVISION; None: as it was labelled.

    Raises ConfigError where there is no such run, cut or table, or a table is of other segments.
    """
    if calibration is None and categories is None:
        return Ledger.open(url, cut=cut)
    ledger = JoinedLedger.open(url, cut=cut)
    if calibration is not None:
        table = _opened(ledger, calibration, PREDICTED)
        ledger.joins, ledger.calibration = ((table, _scored),), table.id
    if categories is not None:
        table = _opened(ledger, categories, CATEGORY)
        ledger.categories_table, ledger.categories = categories_of(table.note, str(table)), table.id
        names = {each.id: each.name for each in ledger.categories_table}
        ledger.joins += ((table, partial(_named, names, str(table))),)
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


def _scored(row: Row, values: Values) -> Row:
    segments, found = row["segments"] or (), [each[PREDICTED] for each in values]
    mean = None
    if len(found) > 1 and None not in found:
        areas = [segment["area"] for segment in segments]
        mean = math.fsum(area * value for area, value in zip(areas, found, strict=True)) / sum(areas)
    scored = [{**segment, "score": value or 0.0} for segment, value in zip(segments, found, strict=True)]
    return {**row, "segments": row["segments"] and scored, "quality": mean, PREDICTED: mean}


def _named(names: Mapping[int, str], table: str, row: Row, values: Values) -> Row:
    ids = [each[CATEGORY] for each in values]
    if lost := {*ids} - {*names, None}:
        raise ConfigError(f"{table}: category {lost.pop()} is not in its note; make the table again")
    pairs = zip(row["segments"] or (), map(names.get, ids), strict=True)
    segments = [{**each, CATEGORY: name} for each, name in pairs]
    return {**row, "segments": row["segments"] and segments, CATEGORIES: row["segments"] and {*map(names.get, ids)}}
