"""A run joined with derived tables: what every reader sees that is given `--calibration` or `--categories`."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffseg.cut import Cut
from pipeline import documents
from pipeline.derived.join import DerivedTable
from pipeline.derived.note import Note
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.filter import CATEGORIES, PREDICTED

CATEGORY = "category"  # column of a category's id; null: unknown
_OF_SCORES, _OF_CATEGORIES = frozenset({"segments", "quality", PREDICTED}), frozenset({"segments", CATEGORIES})
logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Join:
    """A table and what it makes of a row. made: given the table's values of each segment. changed: those columns."""

    table: DerivedTable
    made: Callable[[Row, Sequence[Mapping[str, Any]]], Row]
    changed: frozenset[str]


class JoinedLedger(Ledger):
    """A run read with derived tables.

    With a calibration, rows have the predicted IoU as `score` of each segment, and its mean by area as `quality` and as
    `predicted_iou`: null where there is one segment or the table lacks the window, whose scores are then 0. With
    categories, each segment has the name of its own, null where that is unknown, and `categories` is the set of them.
    """

    joins: tuple[Join, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_run, (self.store.url, self.cut, self.calibration, self.categories)

    @property
    def remade(self) -> frozenset[str]:
        """See `Ledger.remade`."""
        return super().remade.union(*(join.changed for join in self.joins))

    def needed(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """See `Ledger.needed`."""
        if columns is not None and frozenset[str]().union(*(join.changed for join in self.joins)) & set(columns):
            columns = list({*columns, "shard", "index", "segments"} - {PREDICTED, CATEGORIES})
        return super().needed(columns)

    def at_cut(self, row: Row, cut: Cut | None = None) -> Row:
        """See `Ledger.at_cut`."""
        row = super().at_cut(row, cut)
        if "segments" in row:
            for join in self.joins:
                row = join.made(row, join.table.of(row))
        return row

    def category_names(self, windows: Sequence[WindowObject]) -> set[str]:
        """See `Ledger.category_names`."""
        return {each.name for each in self.categories_table} if self.categories else super().category_names(windows)


def open_run(url: str, cut: Cut | None = None, calibration: str | None = None, categories: str | None = None) -> Ledger:
    """Open a run at a cut, with a calibration and categories by NAME or NAME/REVISION; None: as it was labelled.

    Raises ConfigError where there is no such run, cut or table, or a table is of other segments.
    """
    if calibration is None and categories is None:
        return Ledger.open(url, cut=cut)
    ledger = JoinedLedger.open(url, cut=cut)
    if calibration is not None:
        table = _opened(ledger, calibration, PREDICTED)
        ledger.joins, ledger.calibration = (Join(table, _scored, _OF_SCORES),), table.id
    if categories is not None:
        table = _opened(ledger, categories, CATEGORY)
        ledger.categories_table, ledger.categories = categories_of(table.note, str(table)), table.id
        names: dict[int | None, str | None] = {each.id: each.name for each in ledger.categories_table}
        ledger.joins += (Join(table, _naming(names | {None: None}, str(table)), _OF_CATEGORIES),)
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


def _scored(row: Row, values: Sequence[Mapping[str, Any]]) -> Row:
    segments, found = row["segments"] or (), [each[PREDICTED] for each in values]
    mean = None
    if len(found) > 1 and None not in found:
        areas = [segment["area"] for segment in segments]
        mean = math.fsum(area * value for area, value in zip(areas, found, strict=True)) / sum(areas)
    scored = [{**segment, "score": value or 0.0} for segment, value in zip(segments, found, strict=True)]
    return {**row, "segments": row["segments"] and scored, "quality": mean, PREDICTED: mean}


def _naming(names: Mapping[int | None, str | None], table: str) -> Callable[[Row, Sequence[Mapping[str, Any]]], Row]:
    def named(row: Row, values: Sequence[Mapping[str, Any]]) -> Row:
        try:
            found = [names[each[CATEGORY]] for each in values]
        except KeyError as error:
            raise ConfigError(f"{table}: category {error} is not in its note; make the table again") from error
        segments = [{**each, CATEGORY: name} for each, name in zip(row["segments"] or (), found, strict=True)]
        return {**row, "segments": row["segments"] and segments, CATEGORIES: row["segments"] and frozenset(found)}

    return named
