"""Corrections: label maps and categories of images as people want them, which readers prefer to what was labelled.

A derived table of corrected images alone: a row a segment, the first one of an image with its label map, at the size of
the photo, and its quality where nothing was changed. A window that is labelled again keeps its corrections.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from diffseg.cut import box_of, quality
from diffseg.types import Segment
from pipeline import documents
from pipeline.derived.join import DerivedTable
from pipeline.derived.note import revisions
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.ledger import Ledger
from pipeline.table.filter import CATEGORIES, PREDICTED
from pipeline.table.label_map import decode_label_map
from pipeline.table.window_metadata import fields_of

NAME, NONE = "corrections", "none"  # the table that readers take by themselves; what they are told to take none
CORRECTED = "corrected"  # in rows that people corrected
COLUMNS = {"label_map": "binary", "quality": "float32", "score": "float32", "category": "string"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names of categories. named: by people. renamed: what those of other tables are called now; None: dropped."""

    named: tuple[str, ...] = ()
    renamed: Mapping[str, str | None] = field(default_factory=dict)

    def of(self, listed: Iterable[Category]) -> tuple[Category, ...]:
        """Categories of a table as they are called now, and after them those that only people named."""
        found = dict[str, Category]()
        for each in listed:
            if name := self.renamed.get(each.name, each.name):
                found.setdefault(name, replace(each, name=name))
        for name in self.named:
            found.setdefault(name, Category(max((each.id for each in found.values()), default=0) + 1, name))
        return tuple(found.values())


class Corrections(DerivedTable):
    """What people corrected of a run, in one revision. Raises ConfigError where there is no such table."""

    def __init__(self, ledger: Ledger, table: str) -> None:
        super().__init__(ledger, table, list(COLUMNS))
        self._places = {(one.shard, one.window): place for one, place in self.note.places.items()}
        try:
            known = {name: self.note.parameters[name] for name in ("named", "renamed")}
            self.vocabulary = documents.validated(Vocabulary, known)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{self}: a table that `diffseg import` did not make: {error}") from error

    def of(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Nothing of segments as they were labelled."""
        return [dict.fromkeys(self.columns) for _ in row["segments"] or ()]

    def images(self, shard: str, window: int) -> dict[int, dict[int, dict[str, Any]]]:
        """The columns for each segment, by the indices of a window's corrected images."""
        found = dict[int, dict[int, dict[str, Any]]]()
        for (index, segment), values in self._values(shard, window).items():
            found.setdefault(index, {})[segment] = values
        return found

    def corrected(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with labels as people want them; any other row as it is. Raises ConfigError where these are damaged."""
        own = self.images(row["shard"], row["index"] // self.ledger.run.window).get(row["index"])
        if not own:
            return row
        first = own[min(own)]
        label_map = decode_label_map(first["label_map"])
        areas = np.bincount(label_map.ravel() + 1)[1:].tolist()
        boxes = {at: box_of(each) for at, each in enumerate(ndimage.find_objects(label_map + 1)) if each}
        if boxes.keys() != own.keys():
            raise ConfigError(f"{self}: sample {row['index']} of {row['shard']}: its label map has other segments")
        segments = [
            Segment(at, areas[at], boxes[at], values["score"], values["category"] if CATEGORIES in row else None)
            for at, values in sorted(own.items())
        ]
        mean = quality(segments) if first["quality"] is None else first["quality"]
        made = {"label_map": first["label_map"], "num_segments": len(own), "segments": list(map(fields_of, segments))}
        made |= {"quality": mean, PREDICTED: mean}
        made[CATEGORIES] = {each.category for each in segments}
        return row | {name: made[name] for name in made.keys() & {*row, "num_segments"}} | {CORRECTED: True}


def corrections_of(ledger: Ledger, table: str | None) -> Corrections | None:
    """The corrections by NAME or NAME/REVISION; None: the latest, if there are any. Raises ConfigError."""
    if table == NONE or (table is None and NAME not in revisions(ledger)):
        return None
    return Corrections(ledger, table or NAME)
