"""What a run came to: samples by status, segments an image, areas, quality, and what it takes on storage.

Rows are read, but of no more than WINDOWS windows: beyond, a random share of the run tells the same in minutes.
"""

import random
from dataclasses import dataclass

from pipeline.distributions import Distributions
from pipeline.ledger import Ledger
from pipeline.windows import WindowObject

WINDOWS = 1000  # about a million images
COLUMNS = ("status", "quality", "segments")  # what is counted


@dataclass(frozen=True, slots=True)
class Holding:
    """What a folder of a run takes on storage."""

    objects: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Detail:
    """A run in distributions. share: of the windows, that were read; storage: by folder."""

    counts: Distributions
    share: float
    storage: dict[str, Holding]


def detail(ledger: Ledger, *, seed: int = 0) -> Detail:
    """Count what is committed. seed: decides which windows are read of a run that has more than WINDOWS."""
    windows, share = some_windows(ledger, seed)
    counts = Distributions()
    for row in ledger.rows(COLUMNS, windows=windows):
        counts.add(row)
    return Detail(counts, share, holdings(ledger))


def some_windows(ledger: Ledger, seed: int) -> tuple[list[WindowObject], float]:
    """Windows at random, in their order, WINDOWS at most, and what share of all they are."""
    there = list(ledger.windows())
    places = sorted(random.Random(seed).sample(range(len(there)), min(WINDOWS, len(there))))
    return [there[place] for place in places], len(places) / max(1, len(there))


def holdings(ledger: Ledger) -> dict[str, Holding]:
    """Objects and bytes of each folder of a run, from one listing; what lies in none is `.`."""
    found: dict[str, Holding] = {}
    for name, size in ledger.store.list(""):
        folder = name.partition("/")[0] if "/" in name else "."
        before = found.get(folder, Holding(0, 0))
        found[folder] = Holding(before.objects + 1, before.size + size)
    return dict(sorted(found.items()))
