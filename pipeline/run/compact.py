"""Committed windows joined into files of about 256 MB, which every reader then prefers.

A file appears whole or not at all and its name follows from its windows, so the same call resumes wherever it stopped.
Windows stay where they are: a run is what `labels/` lists, and a compacted file is a copy that may be deleted at any
time. Files that are outdated (`--retry-failed`) or small beside new windows are replaced, then removed.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError
from pipeline.run.compacted import FOLDER, CompactedFile, CompactedWindow, read_compacted
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.window_metadata import digest_of

TARGET = 256_000_000  # bytes of windows a file: large enough for any reader, small enough to be sent in a minute
AHEAD = 8  # windows fetched before they are joined: about 3 MB each, and the work is waiting for storage


@dataclass(slots=True)
class Compacted:
    """Progress of a call. files, windows, size: of compacted files now; written, removed: files, by this call."""

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

    target: bytes of windows a file. tick: called after every file.
    Raises ConfigError where nothing is committed or a window is damaged, StorageError.
    """
    windows = list(ledger.windows())
    if not windows:
        raise ConfigError(f"{ledger}: nothing is committed yet, so there is nothing to compact")
    kept, outdated = _sort_out(read_compacted(ledger.store), windows, target)
    done = Compacted()
    for file in kept:
        done.add(file)
    written = set[str]()
    for first, group in _groups(windows, {window.id for file in kept for window in file.windows}, target):
        file = _write(ledger, first, group)
        written.add(file.name)
        done.add(file)
        done.written += 1
        tick(done)
    for file in outdated:
        if file.name not in written:
            ledger.store.remove(file.name)
            done.removed += 1
    return done


def _sort_out(
    files: Iterator[CompactedFile], windows: Sequence[WindowObject], target: int
) -> tuple[list[CompactedFile], list[CompactedFile]]:
    """The files that stay, and those whose windows are joined again."""
    current = {window.id for window in windows}
    kept, outdated, compacted = list[CompactedFile](), list[CompactedFile](), set[tuple[str, int, int]]()
    for file in files:
        ids = {window.id for window in file.windows}
        stays = ids <= current and not ids & compacted
        (kept if stays else outdated).append(file)
        compacted |= ids if stays else set()
    if compacted == current:
        return kept, outdated
    small = [file for file in kept if sum(window.size for window in file.windows) < target / 2]
    return [file for file in kept if file not in small], outdated + small


def _groups(
    windows: Sequence[WindowObject], compacted: set[tuple[str, int, int]], target: int
) -> Iterator[tuple[int, list[WindowObject]]]:
    """The windows of each new file, with the number of its first one in the run: from the listing alone."""
    group, first, size = list[WindowObject](), 0, 0
    for number, window in enumerate(windows):
        if window.id in compacted:
            continue
        first = first if group else number
        group.append(window)
        size += window.size
        if size >= target:
            yield first, group
            group, size = [], 0
    if group:
        yield first, group


def _write(ledger: Ledger, first: int, windows: Sequence[WindowObject]) -> CompactedFile:
    """Write the file of these windows, unless it exists. first: number of the first one in the run."""
    digest = hashlib.blake2b("\n".join(window.name for window in windows).encode(), digest_size=6).hexdigest()
    name = f"{FOLDER}/{first:08d}-{digest}.parquet"

    def fetch(window: WindowObject) -> tuple[WindowObject, bytes]:
        with ledger.store.reader(window.name, window.size) as stream:
            return window, stream.read()

    if not ledger.store.exists(name):
        listed: list[dict[str, object]] = []
        with (
            ledger.store.growing(name) as out,
            table.concat.joining_windows(out, listed, ledger.run.later_columns) as add,
        ):
            for window, data in prefetch_map(fetch, windows, depth=AHEAD, threads=AHEAD):
                try:
                    metadata = add(stream := io.BytesIO(data))
                    ledger.check(window.shard, window.window, metadata)
                    stream.seek(0)
                    if digest_of(table.read_records(stream)) != metadata.digest:
                        raise ValueError("rows do not match their digest")
                except ValueError as error:
                    fault = f"{ledger}/{window.name}: {error}"
                    raise ConfigError(f"{fault}; `diffseg verify --full` finds all that is so") from error
                listed.append(asdict(CompactedWindow(*window.id, metadata.rows, window.size, metadata.digest)))
    file = next(read_compacted(ledger.store, name), None)
    if file is None or [window.id for window in file.windows] != [window.id for window in windows]:
        raise ConfigError(f"{ledger}/{name}: no compacted file of ours, or a damaged one; remove it and run again")
    return file
