"""Compacted files: copies of committed windows, many in one object, because readers wait for every object they open.

<output>/compacted/<number of the first window>-<digest>.parquet   consecutive windows, listed in the file's metadata

They decide nothing: what is committed is what `labels/` lists. A copy of another revision than the committed one is
passed over, and the whole folder may be deleted at any time.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline import documents, table
from pipeline.concurrency import prefetch_map
from pipeline.run.layout import WindowObject
from pipeline.storage.object_store import Store

FOLDER = "compacted"
READERS = 32  # ends of files read side by side: the work is waiting for storage
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompactedWindow:
    """A window in a compacted file. size: bytes of the window's own object."""

    shard: str
    window: int
    generation: int  # the window's revision, by the name it has in the files
    rows: int
    size: int
    digest: str  # of the rows, see `window_metadata`

    @property
    def id(self) -> tuple[str, int, int]:
        """Shard, number and revision."""
        return (self.shard, self.window, self.generation)


@dataclass(frozen=True, slots=True)
class CompactedFile:
    """One object and its windows, in order."""

    name: str
    size: int
    windows: tuple[CompactedWindow, ...]


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of consecutive windows in one object. rows: how many from `first` on; None: all.

    windows: shard and number of each.
    """

    name: str
    size: int
    first: int = 0
    rows: int | None = None
    windows: tuple[tuple[str, int], ...] = ()


def read_compacted(store: Store, name: str = "") -> Iterator[CompactedFile]:
    """The compacted files of a run, in order of name; damaged and foreign ones are passed over. name: only this one."""

    def read(entry: tuple[str, int]) -> CompactedFile | None:
        path, size = entry
        try:
            with store.reader(path, size) as stream:
                windows = documents.from_json(list[CompactedWindow], table.concat.read_window_list(stream))
        except ValueError as error:
            logger.warning("%s/%s is passed over: %s", store, path, error)
            return None
        return CompactedFile(path, size, tuple(windows))

    found = (entry for entry in store.list(name or f"{FOLDER}/") if entry[0].endswith(".parquet"))
    yield from (file for file in prefetch_map(read, found, depth=READERS, threads=READERS) if file)


class CompactedIndex:
    """Finds the rows of windows in compacted files, or else in the windows' own objects."""

    def __init__(self, files: Iterable[CompactedFile]) -> None:
        self._ranges: dict[tuple[str, int, int], RowRange] = {}
        for file in files:
            first = 0
            for window in file.windows:
                self._ranges[window.id] = RowRange(
                    file.name, file.size, first, window.rows, ((window.shard, window.window),)
                )
                first += window.rows

    def ranges(self, windows: Iterable[WindowObject]) -> Iterator[RowRange]:
        """The rows of windows, in the windows' order, in as few ranges as possible."""
        last: RowRange | None = None
        for window in windows:
            own = RowRange(window.name, window.size, windows=((window.shard, window.window),))
            next_ = self._ranges.get(window.id, own)
            if last and last.rows is not None and (last.name, last.first + last.rows) == (next_.name, next_.first):
                last = replace(last, rows=last.rows + (next_.rows or 0), windows=last.windows + next_.windows)
                continue
            if last:
                yield last
            last = next_
        if last:
            yield last
