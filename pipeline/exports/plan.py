"""Plan of an export, made before the first part, so that every part can be written on its own.

One pass over small columns finds which keys are unique file names, where the rows of each part begin, and with a limit
how many images each part may hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.concurrency import prefetch_map
from pipeline.datasets.selection import Part, RowCounts, Selection, chosen_rows
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import Names, hashes_of

TOGETHER = 16  # windows whose keys are read at once
THREADS = 8  # concurrent reads: small reads mostly wait


def plan(
    ledger: Ledger, windows: Sequence[WindowObject], selection: Selection, size: int
) -> tuple[tuple[Part, ...], Names]:
    """All parts, and the names of files that they must agree on. size: windows a part."""
    hashes, folders, starts = list[np.ndarray](), list[np.ndarray](), [0]
    groups = (windows[first : first + TOGETHER] for first in range(0, len(windows), TOGETHER))
    for found in prefetch_map(lambda group: _keys(ledger, group), groups, depth=THREADS, threads=THREADS):
        hashes.append(found[0])
        folders.append(found[1])
        for count in found[2]:
            starts.append(starts[-1] + count)
    cut = [slice(first, min(first + size, len(windows))) for first in range(0, len(windows), size)]
    parts = (
        Part(number, tuple(windows[at]), tuple(starts[at]), starts[at.stop] - starts[at.start])
        for number, at in enumerate(cut)
    )
    names = Names(np.concatenate(hashes), np.unique(np.concatenate(folders)))
    return tuple(_limited(ledger, selection, parts)), names


def _keys(ledger: Ledger, windows: Sequence[WindowObject]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Hashes of the keys and of their folders, and rows of each window."""
    keys = list[str]()
    counts = dict.fromkeys(((window.shard, window.window) for window in windows), 0)
    for row in ledger.rows(["key", "shard", "index"], windows=windows):
        counts[row["shard"], row["index"] // ledger.run.window] += 1
        keys.append(row["key"])
    return *hashes_of(keys), list(counts.values())


def _limited(ledger: Ledger, selection: Selection, parts: Iterator[Part]) -> Iterator[Part]:
    """Parts up to the limit; the last of them may hold the rest of it."""
    left = selection.limit
    for part in parts:
        if left is None:
            yield part
            continue
        if left == 0:
            return
        limited = replace(part, limit=left)
        yield limited
        left -= sum(1 for _ in chosen_rows(ledger, selection, limited, RowCounts(), ["key"]))
