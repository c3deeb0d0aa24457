"""Writing a derived table: parts as they are computed, the note last."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from pipeline import documents
from pipeline.concurrency import ParallelMap, prefetch_map
from pipeline.derived.note import FOLDER, NOTE, Note, Part, check_name, revisions
from pipeline.errors import ConfigError
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.values import encode_values

WINDOWS = 32  # a part: few objects, of about 10 MB where images have 16 segments
READERS = 4  # windows whose values are computed side by side

Values = Callable[[WindowObject], Iterable[Mapping[str, Any]]]  # of a window: rows of index, segment and the columns


def write(ledger: Ledger, name: str, note: Note, values: Values, parallel_map: ParallelMap = map) -> tuple[Note, int]:
    """Write the values of all committed windows as a new revision; returns its note and number.

    note: without parts; or of the latest revision, whose parts are kept and extended by what is missing from them,
    if anything is. values: follow from the note and the window alone: a part that a killed writer left is not made
    again. parallel_map: applied to parts, which may be on other machines.
    Raises ConfigError where nothing is committed or another writer had this revision first, StorageError.
    """
    check_name(name)
    windows = list(ledger.windows())
    if not windows:
        raise ConfigError(f"{ledger}: nothing is committed yet, so nothing can be derived from it")
    revision = revisions(ledger).get(name, 0) + 1
    known = note.places
    new = [window for window in windows if window not in known]
    if note.parts and not new:
        return note, revision - 1
    folder, note = f"{FOLDER}/{name}", replace(note, version=version("diffseg"))
    there = dict(ledger.store.list(f"{folder}/{revision}/"))
    made, planned = documents.to_json(replace(note, parts=())), list[Part]()
    for number in range(0, len(new), WINDOWS):
        group = tuple(new[number : number + WINDOWS])
        names = "\n".join(window.name for window in group).encode()
        writer = hashlib.blake2b(made + names, digest_size=6).hexdigest()
        name = f"{revision}/{writer}-{number // WINDOWS:05}.parquet"
        planned.append(Part(name, there.get(f"{folder}/{name}", 0), group, ()))
    parts = parallel_map(partial(_written, ledger, folder, note.columns, values), planned)
    done = replace(note, parts=(*note.parts, *parts))
    put(ledger, f"{folder}/{revision}/{NOTE}", documents.to_json(done))
    return done, revision


def _written(ledger: Ledger, folder: str, columns: Mapping[str, str], values: Values, part: Part) -> Part:
    """The part with its size and digests, written unless it has a size already."""
    read = partial(_read, ledger, None if part.size else values)
    digests, rows = zip(*prefetch_map(read, part.windows, depth=READERS, threads=READERS), strict=True)
    if part.size:
        return replace(part, digests=digests)
    data = encode_values(rows, columns)
    put(ledger, f"{folder}/{part.name}", data)
    return replace(part, digests=digests, size=len(data))


def put(ledger: Ledger, path: str, content: bytes) -> None:
    """Write an object of a revision. Raises ConfigError where another writer was first."""
    if not ledger.store.put_new(path, content) and ledger.store.get(path) != content:  # equal: its reply was lost
        raise ConfigError(f"{ledger}/{path}: another writer was first, with other values: run again")


def _read(ledger: Ledger, values: Values | None, window: WindowObject) -> tuple[str, list[Mapping[str, Any]]]:
    try:
        digest = ledger.window_metadata(window).digest
    except ValueError as error:
        raise ConfigError(f"{ledger}/{error}; `diffseg verify --full` finds all that is so") from error
    return digest, [{"shard": window.shard, **row} for row in values(window)] if values else []
