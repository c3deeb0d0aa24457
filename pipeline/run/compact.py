"""Committed windows joined into files of about 256 MB, which every reader then prefers.

A file appears whole or not at all and its name tells its windows, so the same call resumes wherever it was stopped.
Windows stay where they are: a run is what `labels/` lists, and a compacted file is a copy that may be deleted at any
time. Files that have become outdated (`--retry-failed`) or small beside new windows are replaced, then removed.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError
from pipeline.run.compacted import FOLDER, CompactedFile, Held, held_of, read_compacted
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.window_metadata import WindowMetadata

TARGET = 256_000_000  # bytes of windows a file: large enough for any reader, small enough to be sent in a minute
AHEAD = 8  # windows fetched before they are joined: about 3 MB each, and the work is waiting for storage


@dataclass(slots=True)
class Compacted:
    """How far it is. files, windows, size: of compacted files now; written, removed: files, by this call."""

    files: int = 0
    windows: int = 0
    size: int = 0
    written: int = 0
    removed: int = 0

    def add(self, file: CompactedFile) -> None:
        """Count a file."""
        self.files, self.windows, self.size = self.files + 1, self.windows + len(file.windows), self.size + file.size


def compact(ledger: Ledger, *, target: int = TARGET, tick: Callable[[Compacted], None] = lambda _: None) -> Compacted:
    """Bring every committed window into a compacted file; memory holds AHEAD windows and one row group.

    target: bytes of windows a file. tick: told after every file.
    Raises ConfigError where nothing is committed or a window is damaged, StorageError.
    """
    windows = list(ledger.windows())
    if not windows:
        raise ConfigError(f"{ledger}: nothing is committed yet, so there is nothing to compact")
    kept, others = _sorted_out(read_compacted(ledger.store), windows, target)
    done = Compacted()
    for file in kept:
        done.add(file)
    held = {(one.shard, one.window) for file in kept for one in file.windows}
    written = set[str]()
    for place, group in _groups(windows, held, target):
        file = _write(ledger, place, group)
        written.add(file.name)
        done.add(file)
        done.written += 1
        tick(done)
    for file in others:
        if file.name not in written:
            ledger.store.remove(file.name)
            done.removed += 1
    return done


def _sorted_out(
    files: Iterator[CompactedFile], windows: Sequence[WindowObject], target: int
) -> tuple[list[CompactedFile], list[CompactedFile]]:
    """Files that stay, and those whose windows are to be joined anew."""
    current = {(window.shard, window.window, window.revision) for window in windows}
    kept, others, held = list[CompactedFile](), list[CompactedFile](), set[tuple[str, int, int]]()
    for file in files:
        those = {(one.shard, one.window, one.generation) for one in file.windows}
        stays = those <= current and not those & held
        (kept if stays else others).append(file)
        held |= those if stays else set()
    if held == current:
        return kept, others
    small = [file for file in kept if sum(one.size for one in file.windows) < target / 2]
    return [file for file in kept if file not in small], others + small


def _groups(
    windows: Sequence[WindowObject], held: set[tuple[str, int]], target: int
) -> Iterator[tuple[int, list[WindowObject]]]:
    """What one file is to hold, and the place of its first window in the run: told by the listing alone."""
    group, first, size = list[WindowObject](), 0, 0
    for place, window in enumerate(windows):
        if (window.shard, window.window) in held:
            continue
        first = first if group else place
        group.append(window)
        size += window.size
        if size >= target:
            yield first, group
            group, size = [], 0
    if group:
        yield first, group


def _write(ledger: Ledger, place: int, windows: Sequence[WindowObject]) -> CompactedFile:
    """One file, or the equal one that is there."""
    digest = hashlib.blake2b("\n".join(window.name for window in windows).encode(), digest_size=6).hexdigest()
    name = f"{FOLDER}/{place:08d}-{digest}.parquet"

    def fetch(window: WindowObject) -> tuple[WindowObject, bytes]:
        with ledger.store.reader(window.name, window.size) as stream:
            return window, stream.read()

    if not ledger.store.exists(name):
        held: list[dict[str, object]] = []
        with ledger.store.growing(name) as out, table.concat.joining_windows(out, held) as add:
            for window, data in prefetch_map(fetch, windows, depth=AHEAD, threads=AHEAD):
                held.append(asdict(_add(ledger, window, io.BytesIO(data), add)))
    there = next(read_compacted(ledger.store, name), None)
    if there is None or not held_of(there, windows):
        raise ConfigError(f"{ledger}/{name}: no compacted file of ours, or a damaged one; remove it and run again")
    return there


def _add(ledger: Ledger, window: WindowObject, data: IO[bytes], add: Callable[[IO[bytes]], WindowMetadata]) -> Held:
    try:
        metadata = add(data)
        table.check_window(metadata, (window.shard, window.window))
    except ValueError as error:
        raise ConfigError(f"{ledger}/{window.name}: {error}; `diffseg verify --full` finds all that is so") from error
    return Held(window.shard, window.window, window.revision, metadata.rows, window.size, metadata.digest)
