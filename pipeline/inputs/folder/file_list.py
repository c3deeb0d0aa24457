"""File lists: the image files of a folder when it was pinned, in order of name, stored beside the run's inputs.

A list is gzip of one line of JSON a file, `[name below the folder, bytes, version]`: a million files are about 20 MB,
and both ways are streams.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.errors import ConfigError
from pipeline.records import Shard
from pipeline.storage import filesystem
from pipeline.storage.url import redact

FOLDER = "inputs/files"  # below a run
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class File:
    """One image of a folder. name: below the folder; etag: the store's, or the modification time."""

    name: str
    size: int  # bytes
    etag: str


@dataclass(frozen=True, slots=True)
class FileList:
    """A stored list. size: bytes of all files; digest: of the list, the version of the folder."""

    data: bytes
    size: int
    digest: str


def pack(files: Iterable[File]) -> FileList:
    """Pack files, in order of name, into a stored list."""
    packed, digest, size = io.BytesIO(), hashlib.blake2b(digest_size=16), 0
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as out:
        for file in files:
            line = json.dumps([file.name, file.size, file.etag]).encode() + b"\n"
            digest.update(line)
            out.write(line)
            size += file.size
    return FileList(packed.getvalue(), size, digest.hexdigest())


def name_of(shard: Shard) -> str:
    """The name of a folder's list below the run."""
    return f"{FOLDER}/{shard.id}.{shard.etag}.jsonl.gz"


def files_of(shard: Shard) -> Iterator[File]:
    """The files of a folder when it was pinned. Raises ConfigError where its list is gone or damaged, StorageError."""
    if isinstance(shard.files, bytes):
        yield from _unpack(io.BytesIO(shard.files), shard.url)
        return
    try:
        entry = filesystem.stat(shard.files)
    except FileNotFoundError as error:
        raise ConfigError(f"{shard.url}: the list of its files, {redact(shard.files)}, is gone") from error
    with filesystem.open_ranged(shard.files, entry.size) as stream:
        yield from _unpack(stream, redact(shard.files))


def compare(parts: Iterable[Shard], now: Shard) -> tuple[list[str], FileList]:
    """The files of a folder that were deleted, by name, and those that were added, since its parts were pinned.

    Raises ConfigError where one has changed.
    """
    known = {file.name: file for part in parts for file in files_of(part)}
    new, changed = [], []
    for file in files_of(now):
        before = known.pop(file.name, None)
        if before is None:
            new.append(file)
        elif before != file:
            changed.append(file.name)
    if changed:
        raise ConfigError(
            f"{now.url}{changed[0]}: not the file this run began with ({len(changed)} such): use another --output"
        )
    return list(known), pack(new)


def _unpack(stream: BinaryIO, name: str) -> Iterator[File]:
    try:
        with gzip.open(stream) as lines:
            for line in cast(Iterable[bytes], lines):
                yield File(*json.loads(line))
    except _DAMAGE as error:
        raise ConfigError(f"{name}: no list of files: {error}") from error
