"""Exemplars: the images that show a category best."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Generic, TypeVar

from pipeline.derived.joined import DerivedTable
from pipeline.derived.note import read_note
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.filter import Condition

EXEMPLARS = 8  # images of a category shown beside the others
Identity = tuple[str, int]  # shard id and index of a sample
T = TypeVar("T")


class Top(Generic[T]):
    """The `size` values of highest rank out of any number."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, T]] = []

    def add(self, rank: float, value: T) -> None:
        """Add a value; it is kept if its rank is high enough."""
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (rank, value))
        elif self._heap and rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (rank, value))

    def values(self) -> list[T]:
        """The kept values, the highest first."""
        return [value for _, value in sorted(self._heap, reverse=True)]


def exemplars(
    ledger: Ledger, windows: Sequence[WindowObject], samples: int, filter: Condition | None = None
) -> dict[Identity, list[str]]:
    """The images with the clearest segments of each category, and which: nearest to its centre, or of largest margin.

    samples: of all categories at most. filter: only images of which it is true.
    Raises ConfigError where the table is damaged.
    """
    columns = read_note(ledger, ledger.categories)[0].columns if ledger.categories else {}
    if not (clear := [name for name in ("distance", "margin") if name in columns]):
        return {}
    table, sign = DerivedTable(ledger, str(ledger.categories), clear), -1 if clear == ["distance"] else 1
    top = {
        each.name: Top[Identity](min(EXEMPLARS, samples // len(ledger.categories_table)))
        for each in ledger.categories_table
    }
    for row in table.join(ledger.rows(["shard", "index", "segments"], windows=windows, filter=filter)):
        known = (each for each in row["segments"] or () if each["category"] and each[clear[0]] is not None)
        ranks = sorted((sign * each[clear[0]], each["category"]) for each in known)
        for name, rank in {name: rank for rank, name in ranks}.items():
            top[name].add(rank, (row["shard"], row["index"]))
    found = defaultdict[Identity, list[str]](list)
    for name, images in top.items():
        for identity in images.values():
            found[identity].append(name)
    return found
