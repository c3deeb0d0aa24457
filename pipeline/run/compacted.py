"""Compacted files: copies of committed windows, many in one object, for readers who wait for every object they open.

<output>/compacted/<place>-<digest>.parquet   windows that follow each other; the file's end says which

Nothing is decided by them: what is committed is what `labels/` lists. A copy of another revision than the window that
stands there is passed over, and the whole folder may be deleted at any time.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.run.layout import WindowObject
from pipeline.storage.object_store import Store

FOLDER = "compacted"
READERS = 32  # ends of files read side by side: the work is waiting for storage
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A window as a compacted file has it. size: bytes of the window's own object."""

    shard: str
    window: int
    generation: int  # the window's revision, under the name that the files have for it
    rows: int
    size: int
    digest: str  # of the rows, see `window_metadata`


@dataclass(frozen=True, slots=True)
class CompactedFile:
    """One object and its windows, in order."""

    name: str
    size: int
    windows: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of windows that follow each other, in one object. rows: None for all from `first` on.

    window: shard and number, where the object is that window's own.
    """

    name: str
    size: int
    first: int = 0
    rows: int | None = None
    window: tuple[str, int] | None = None


def read_compacted(store: Store, name: str = "") -> Iterator[CompactedFile]:
    """What there is, in order of name; files that are none of ours are passed over. name: only this one."""

    def read(entry: tuple[str, int]) -> CompactedFile | None:
        path, size = entry
        try:
            with store.reader(path, size) as stream:
                return CompactedFile(path, size, tuple(Held(**said) for said in table.concat.read_held(stream)))
        except (ValueError, TypeError) as error:
            logger.warning("%s/%s is passed over: %s", store, path, error)
            return None

    found = (entry for entry in store.list(name or f"{FOLDER}/") if entry[0].endswith(".parquet"))
    yield from (file for file in prefetch_map(read, found, depth=READERS, threads=READERS) if file)


class Places:
    """Where the rows of a window are best read."""

    def __init__(self, files: Iterable[CompactedFile]) -> None:
        self._places: dict[tuple[str, int, int], Stretch] = {}
        for file in files:
            first = 0
            for held in file.windows:
                place = Stretch(file.name, file.size, first, held.rows)
                self._places[held.shard, held.window, held.generation] = place
                first += held.rows

    def __contains__(self, window: WindowObject) -> bool:
        return (window.shard, window.window, window.revision) in self._places

    def stretches(self, windows: Iterable[WindowObject]) -> Iterator[Stretch]:
        """The rows of these windows, in their order, in as few reads as can be."""
        last: Stretch | None = None
        for window in windows:
            own = Stretch(window.name, window.size, window=(window.shard, window.window))
            next_ = self._places.get((window.shard, window.window, window.revision), own)
            joined = _joined(last, next_)
            if last and not joined:
                yield last
            last = joined or next_
        if last:
            yield last


def _joined(one: Stretch | None, other: Stretch) -> Stretch | None:
    """Both as one, where the second follows the first in the same object."""
    if one is None or one.rows is None or other.rows is None:
        return None
    if one.name != other.name or one.first + one.rows != other.first:
        return None
    return replace(one, rows=one.rows + other.rows)


def held_of(file: CompactedFile, windows: Sequence[WindowObject]) -> bool:
    """Whether a file holds exactly these windows."""
    there = [(held.shard, held.window, held.generation) for held in file.windows]
    return there == [(window.shard, window.window, window.revision) for window in windows]
