"""Parts of an export: which there are, planned so that each can be written on its own, and what writes one side of one.

One pass over small columns finds which keys are unique file names, where the rows of each part begin, and with a limit
how many images each part may hold.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from pipeline.concurrency import prefetch_map
from pipeline.datasets.samples import LabelledSample
from pipeline.datasets.selection import Part, RowCounts, Selection, chosen_rows
from pipeline.exports.categories import Categories
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import Names, generated_name, hashes_of
from pipeline.storage.object_store import Store

TOGETHER = 16  # windows whose keys are read at once
READERS = 8  # concurrent reads: small reads mostly wait
THREADS = 16  # concurrent writes of small objects
WAITING = 64  # small objects in memory

Add = Callable[[LabelledSample], None]  # writes a sample


def plan(
    ledger: Ledger, windows: Sequence[WindowObject], selection: Selection, size: int
) -> tuple[tuple[Part, ...], Names]:
    """All parts, and the names of files that they must agree on. size: windows a part."""
    hashes, folders, starts = list[np.ndarray](), list[np.ndarray](), [0]
    groups = (windows[first : first + TOGETHER] for first in range(0, len(windows), TOGETHER))
    for found in prefetch_map(lambda group: _keys(ledger, group), groups, depth=READERS, threads=READERS):
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


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that the parts of an export have in common; it is sent to the processes that write them.

    parts: how many there are. images: whether photos lie beside the labels. members: whether the other members of a
    sample do too. instances: their kind.
    """

    kind: str
    parts: int
    selection: Selection
    images: bool
    members: bool
    names: Names
    categories: Categories
    instances: str


@contextmanager
def writing(store: Store) -> Iterator[Callable[[str, bytes], None]]:
    """Yields a function that writes small objects, several at once; all are written when the block ends without error.

    An equal object, which an earlier attempt has written, is kept; ConfigError where something else is stored.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:

        def put(name: str, data: bytes) -> None:
            pending.append(pool.submit(store.put_same, name, data))
            if len(pending) > WAITING:
                pending.popleft().result()

        yield put
        for each in pending:
            each.result()


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """What a format needs to write one side of one part.

    side: `train` or `val`. number: of the part. ids: of annotations, unique in the whole export. notice: of the model
    and its licence, where the run knows it. put: writes a small object.
    """

    work: Work
    side: str
    number: int
    ids: Iterator[int]
    notice: dict[str, str]
    store: Store
    put: Callable[[str, bytes], None]

    @property
    def suffix(self) -> str:
        """The suffix of the part's names; empty where there is only one part."""
        return "" if self.work.parts == 1 else f"_{self.number:05}"

    def put_photo(self, folder: str, sample: LabelledSample) -> None:
        """Write the original photo, where photos are wanted."""
        if self.work.images and sample.photo is not None:
            self.put(f"{folder}/{sample.name}.{sample.extension}", sample.photo)

    def put_found_photo(self, folder: str, sample: LabelledSample) -> LabelledSample:
        """Write the photo by a name that `diffseg import` finds it by; returns the sample of that name."""
        row = sample.row
        sample = replace(sample, name=generated_name(row["key"], row["shard"], row["index"]))
        self.put_photo(folder, sample)
        return sample


@contextmanager
def growing_list(out: BinaryIO) -> Iterator[Callable[[Any], None]]:
    """Yields a function that adds an element to a JSON list, a line each; the list is closed after the block."""
    before = b"[\n"

    def add(element: Any) -> None:
        nonlocal before
        out.write(before + json.dumps(element).encode())
        before = b",\n"

    yield add
    out.write(b"[]" if before == b"[\n" else b"\n]")
