"""The note of a derived table's revision: what made it, from which windows, where their values are; and its writing.

<output>/derived/<name>/<revision>/<digest>-<part>.parquet   values of up to WINDOWS windows, a row group each
<output>/derived/<name>/<revision>/note.json                  written last: without it there is no such revision

<digest> is of the note without parts and of the windows: what a killed writer left is taken over by one that writes the
same. Nothing is rewritten. Parts that no note names are seen by no reader.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from pipeline import documents
from pipeline.concurrency import ParallelMap, prefetch_map
from pipeline.errors import ConfigError
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.object_store import LARGE_NOTE
from pipeline.table.values import encode_values

FOLDER = "derived"
NOTE = "note.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of values. name: below the table's folder. size: bytes.

    windows: of its row groups, in order, as they were listed: one that was replaced since is another. digests: of rows.
    """

    name: str
    size: int
    windows: tuple[WindowObject, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What made a revision. columns: beside the key, each with Arrow's name of its type. cut: of the segments."""

    command: str
    columns: Mapping[str, str]
    version: str = ""  # of diffseg
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cut: str | None = None
    parts: tuple[Part, ...] = ()

    @property
    def places(self) -> dict[WindowObject, tuple[Part, int]]:
        """Part and row group of every window."""
        return {window: (part, group) for part in self.parts for group, window in enumerate(part.windows)}


def check_name(name: str) -> str:
    """The name. Raises ConfigError where it is none that a table can have."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"derived table {name!r}: a name has small letters, digits, - and _, 64 at most")
    return name


def parse_table(table: str) -> tuple[str, str]:
    """Name and revision of NAME, NAME/REVISION or NAME@REVISION; an empty revision is the latest."""
    name, _, revision = table.replace("@", "/").partition("/")
    return name, revision


def revisions(ledger: Ledger) -> dict[str, int]:
    """The latest revision of every derived table of a run, by name, from one listing."""
    found: dict[str, int] = {}
    for path, _ in ledger.store.list(f"{FOLDER}/"):
        _, name, revision, *rest = [*path.split("/"), "", ""]
        if rest[:1] == [NOTE] and revision.isdecimal():
            found[name] = max(found.get(name, 0), int(revision))
    return found


def read_note(ledger: Ledger, table: str) -> tuple[Note, int]:
    """A table's note and revision. table: NAME for the latest revision, NAME/REVISION or NAME@REVISION.

    Raises ConfigError where there is no such table, or the note is damaged.
    """
    name, wanted = parse_table(table)
    known = revisions(ledger)
    latest = known.get(check_name(name), 0)
    if not latest:
        there = f"; there are {', '.join(sorted(known))}" if known else ""
        raise ConfigError(f"{ledger}: no derived table {name!r}{there}")
    path = f"{FOLDER}/{name}/{wanted or latest}/{NOTE}"
    try:
        return ledger.store.document(Note, path, LARGE_NOTE), int(wanted or latest)
    except FileNotFoundError as error:
        raise ConfigError(f"{ledger}: {name!r} has no revision {wanted!r}, the latest is {latest}") from error
    except ValueError as error:
        raise ConfigError(f"{ledger}/{path}: no note of ours: {error}") from error


def overview(ledger: Ledger) -> dict[str, str]:
    """The latest revision of every derived table of a run, by NAME/REVISION, in one line each, damaged ones too."""
    current, found = set(ledger.windows()), {}
    for name, revision in revisions(ledger).items():
        table = f"{name}/{revision}"
        try:
            note = read_note(ledger, table)[0]
            found[table] = f"{len(current & note.places.keys()):,} of {len(current):,} windows, by `{note.command}`"
        except ConfigError as error:
            found[table] = str(error)
    return found


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
