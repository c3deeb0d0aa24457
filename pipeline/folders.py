"""Folders of images as shards: every image file is a sample, in order of name.

Samples are those of the list that was pinned (`filelists`), so that no index ever moves: a file that came later is not
among them, one that is gone or is another now gives a row that says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline import storage
from pipeline.errors import ShardChanged, StorageError
from pipeline.filelists import File, FileList, files_of, pack
from pipeline.images import MAX_BYTES
from pipeline.overlap import map_ahead
from pipeline.records import READER, RawSample, Shard, legible
from pipeline.tars import IMAGE_EXTENSIONS

AHEAD = 32  # files fetched side by side: small reads are spent waiting


@dataclass(frozen=True, slots=True)
class Folder(storage.Entry):
    """A folder as the one object its files are to a run: bytes of all files, and a digest of their list."""

    files: bytes  # as `filelists.pack` has them


def is_folder(url: str) -> bool:
    """Told by the slash at the end."""
    return url.endswith("/")


def stat_folder(folder: str, reader: int = READER) -> Folder:
    """A folder and the image files below it now, as a reader tells them.

    Raises FileNotFoundError where it holds no image.
    """
    root = _root(folder)
    named = storage.redact(root)  # as a listing names what it finds
    found = (File(entry.url.removeprefix(named), entry.size, entry.etag) for entry in storage.walk(root))
    listed = pack(file for file in found if _extension(file.name) in IMAGE_EXTENSIONS)
    if listed == NOTHING:
        raise FileNotFoundError(folder)
    return Folder(root, listed.size, listed.digest, listed.data)


NOTHING: FileList = pack(())


def read_folder(shard: Shard, *, first: int = 0) -> Iterator[RawSample]:
    """The samples of a folder in order; those before index `first` without bytes."""
    root = shard.source or shard.url

    def read(place: tuple[int, File, int]) -> RawSample:
        index, file, end = place
        name = legible(file.name)
        extension = _extension(name)
        data, problem = b"", None
        if file.size > MAX_BYTES:
            said = f"{name} has {file.size} bytes, more than the {MAX_BYTES} that are read"
            problem = ("too_large", said)
        elif index >= first:
            try:
                data = _get(root + file.name, file)
            except ShardChanged as error:
                problem = ("changed", str(error))
        return RawSample(_key(name), index, {extension: data}, extension, end, problem)

    places = _places(files_of(shard))
    for place in islice(places, first):
        yield read(place)
    yield from map_ahead(read, places, depth=AHEAD, threads=AHEAD // 2)


def _places(files: Iterator[File]) -> Iterator[tuple[int, File, int]]:
    """Files with their index and the bytes up to their end."""
    end = 0
    for index, file in enumerate(files):
        end += file.size
        yield index, file, end


def _get(url: str, file: File) -> bytes:
    """A file's bytes. Raises ShardChanged where it is not the one that was pinned.

    Looked at after it was read: what is still the pinned version then was it all along.
    """
    data, failed = b"", None
    try:
        with storage.open_ranged(url, file.size) as stream:
            data = stream.read()
    except StorageError as error:
        failed = error
    try:
        now = storage.stat(url)
    except FileNotFoundError as error:
        raise ShardChanged(f"{file.name}: gone since the run began") from error
    if (now.size, now.etag) != (file.size, file.etag):
        raise ShardChanged(
            f"{file.name}: changed since the run began ({file.size} bytes, version {file.etag}; "
            f"now {now.size} bytes, version {now.etag})"
        )
    if failed:
        raise failed
    return data


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.split(".")[0] or last)


def _root(folder: str) -> str:
    """What the names of its files are appended to."""
    protocol = storage.protocol_of(folder)
    if protocol == "file":
        return storage.canonical(folder).removeprefix("file://").rstrip("/") + "/"
    return f"{protocol}://{folder.partition('://')[2].rstrip('/')}/"


def _extension(name: str) -> str:
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if stem else ""
