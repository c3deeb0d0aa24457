"""Writing a derived table: parts as they are computed, the note last."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from pipeline import documents
from pipeline.concurrency import prefetch_map
from pipeline.derived.note import FOLDER, NOTE, Note, Part, check_name, revisions
from pipeline.errors import ConfigError
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.values import encode_values

WINDOWS = 32  # a part: few objects, of about 10 MB where images have 16 segments
READERS = 4  # windows whose values are computed side by side

Values = Callable[[WindowObject], Iterable[Mapping[str, Any]]]  # of a window: rows of index, segment and the columns


def write(ledger: Ledger, name: str, note: Note, values: Values) -> tuple[Note, int]:
    """Write the values of all committed windows as a new revision; returns its note and number.

    note: without parts; or of the latest revision, whose parts are kept and extended by what is missing from them,
    if anything is.
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
    folder, attempt, parts = f"{FOLDER}/{name}", uuid.uuid4().hex[:12], list(note.parts)
    for number in range(0, len(new), WINDOWS):
        group = new[number : number + WINDOWS]
        read = list(prefetch_map(partial(_read, ledger, values), group, depth=READERS, threads=READERS))
        digests, rows = zip(*read, strict=True)
        data = encode_values(rows, note.columns)
        part = Part(f"{revision}/{attempt}-{number // WINDOWS:05}.parquet", len(data), tuple(group), digests)
        ledger.store.put_new(f"{folder}/{part.name}", data)
        parts.append(part)
    done = replace(note, parts=tuple(parts), version=version("diffseg"))
    path, content = f"{folder}/{revision}/{NOTE}", documents.to_json(done)
    if not ledger.store.put_new(path, content) and ledger.store.get(path) != content:  # equal: its reply was lost
        raise ConfigError(f"{ledger}/{path}: another writer was first; this one's values are in no table: run again")
    return done, revision


def _read(ledger: Ledger, values: Values, window: WindowObject) -> tuple[str, list[Mapping[str, Any]]]:
    try:
        digest = ledger.window_metadata(window).digest
    except ValueError as error:
        raise ConfigError(f"{ledger}/{error}; `diffseg verify --full` finds all that is so") from error
    return digest, [{"shard": window.shard, **row} for row in values(window)]
