"""Folders of images as shards: every image file is a sample, in order of name.

A folder's version is a digest of its sorted listing, so one that gains, loses or changes a file is no longer the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ShardChanged
from pipeline.images import MAX_BYTES
from pipeline.overlap import map_ahead
from pipeline.records import RawSample
from pipeline.tars import IMAGE_EXTENSIONS

AHEAD = 32  # files fetched side by side: small reads are spent waiting


def is_folder(url: str) -> bool:
    """Told by the slash at the end."""
    return url.endswith("/")


def images_in(folder: str) -> list[storage.Entry]:
    """The image files below a folder, in order of name."""
    return [entry for entry in storage.walk(_root(folder)) if _extension(entry.url) in IMAGE_EXTENSIONS]


def as_shard(folder: str, files: Iterable[storage.Entry]) -> storage.Entry:
    """A folder as the one object its files are to a run."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    root = _root(folder)
    for file in files:
        digest.update(f"{file.url.removeprefix(root)}\0{file.size}\0{file.etag}\n".encode())
        size += file.size
    return storage.Entry(root, size, digest.hexdigest())


def stat_folder(folder: str) -> storage.Entry:
    """A folder's size and version now. Raises FileNotFoundError where it holds no image."""
    files = images_in(folder)
    if not files:
        raise FileNotFoundError(folder)
    return as_shard(folder, files)


def read_folder(folder: str, *, first: int = 0) -> Iterator[RawSample]:
    """The samples of a folder in order; those before index `first` without bytes."""
    root = _root(folder)
    files = images_in(folder)
    ends = _running_sum(files)

    def read(place: tuple[int, storage.Entry, int]) -> RawSample:
        index, file, end = place
        extension = _extension(file.url)
        name = file.url.removeprefix(root)
        path = PurePosixPath(name)
        key = str(path.with_name(path.name.split(".")[0] or path.name))
        if file.size > MAX_BYTES:
            problem = ("too_large", f"{name} has {file.size} bytes, more than the {MAX_BYTES} that are read")
            return RawSample(key, index, {extension: b""}, extension, end, problem)
        return RawSample(key, index, {extension: _get(file) if index >= first else b""}, extension, end)

    places = ((index, file, end) for index, (file, end) in enumerate(zip(files, ends, strict=True)))
    for place in islice(places, min(first, len(files))):
        yield read(place)
    yield from map_ahead(read, places, depth=AHEAD, threads=AHEAD // 2)


def _get(file: storage.Entry) -> bytes:
    try:
        with storage.open_ranged(file.url, file.size) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise ShardChanged(f"{storage.redact(file.url)}: gone since the run began") from error


def _running_sum(files: Iterable[storage.Entry]) -> Iterator[int]:
    end = 0
    for file in files:
        end += file.size
        yield end


def _root(folder: str) -> str:
    """As the names of its files begin."""
    local = storage.protocol_of(folder) == "file"
    return (storage.canonical(folder).removeprefix("file://") if local else folder.rstrip("/")) + "/"


def _extension(url: str) -> str:
    return PurePosixPath(url).suffix.lower().lstrip(".")
