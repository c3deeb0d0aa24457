"""Folders of images as shards: every image file is a sample, in order of name.

Samples are those of the list that was pinned (`filelists`), so that no index ever moves: a file that came later is not
among them, one that is gone or is another now gives a row that says so.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError, ShardChanged, StorageError
from pipeline.inputs import find, kinds
from pipeline.inputs.decode import MAX_BYTES
from pipeline.inputs.folder.file_list import File, FileList, files_of, pack
from pipeline.records import READER, RawSample, Shard, legible
from pipeline.storage import filesystem
from pipeline.storage.url import canonical, protocol_of, redact

AHEAD = 32  # files fetched side by side: small reads are spent waiting
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folder(filesystem.Entry):
    """A folder as the one object its files are to a run: bytes of all files, and a digest of their list."""

    files: bytes  # as `filelists.pack` has them
    left_out: str  # what else lies in it, counted and named


def is_folder(url: str) -> bool:
    """Told by the slash at the end."""
    return url.endswith("/")


def stat_folder(folder: str, reader: int = READER) -> Folder:
    """A folder and the image files below it now, as a reader tells them. Raises ConfigError where it holds no image."""
    root = _root(folder)
    named = redact(root)  # as a listing names what it finds
    found = find.walk(root, kinds.is_system if reader > 1 else lambda name: False, links=reader > 1)
    files = [File(entry.url.removeprefix(named), entry.size, entry.etag) for entry in found.entries]
    exports = _exports([file.name for file in files]) if reader > 1 else []
    files = [file for file in files if not file.name.startswith(tuple(filter(None, exports)))]
    images = [file for file in files if kinds.is_image(_extension(file.name), reader)]
    others = [file.name for file in files if not kinds.is_image(_extension(file.name), reader)]
    if "" in exports and images:
        raise ConfigError(f"{named}: an export, where images may be label maps: name the folder of its photos")
    masks, doubtful = _masks([file.name for file in images]) if reader > 1 else (set(), [])
    listed = pack(file for file in images if file.name not in masks)
    said = [_by_extension(others)] if others else []
    said += [find.counted(sorted(masks), "label image")] if masks else []
    said += [find.counted(exports, "export")] if any(exports) else []
    said += found.left_out()
    if listed == NOTHING:
        shards = sorted({kinds.suffix(name) for name in others} - {""})
        hint = f"name its shards: {named}*{shards[0] if shards else '.tar'}"
        raise ConfigError(f"{named}: {'; '.join(['a folder without images', *said, hint])}")
    if doubtful:
        said.append(f"{find.counted(doubtful, 'possible mask')}, labelled like any photo")
    return Folder(root, listed.size, listed.digest, listed.data, "; ".join(said))


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
                logger.debug("file %d: %s", index, error)
                problem = ("changed", str(error))
        return RawSample(_key(name), index, {extension: data}, extension, end, problem)

    places = _places(files_of(shard))
    for place in islice(places, first):
        yield read(place)
    yield from prefetch_map(read, places, depth=AHEAD, threads=AHEAD // 2)


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
        with filesystem.open_ranged(url, file.size) as stream:
            data = stream.read()
    except StorageError as error:
        failed = error
    try:
        now = filesystem.stat(url)
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
    protocol = protocol_of(folder)
    if protocol == "file":
        return canonical(folder).removeprefix("file://").rstrip("/") + "/"
    return f"{protocol}://{folder.partition('://')[2].rstrip('/')}/"


def _extension(name: str) -> str:
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if stem else ""


def _exports(names: Sequence[str]) -> list[str]:
    """The folders below that `diffseg export` wrote, each with a slash at its end; empty for the one that is listed."""
    found = [name.removesuffix("export.json") for name in names if name.rpartition("/")[2] == "export.json"]
    return [
        folder for folder in found if any(name.startswith((f"{folder}_export/", f"{folder}_SUCCESS")) for name in names)
    ]


def _by_extension(names: Sequence[str]) -> str:
    """As in `3 other files: 2 .txt, 1 .mp4`."""
    counts = Counter(_extension(name) for name in names).most_common()
    named = {extension: f".{legible(extension)}" if extension else "without extension" for extension, _ in counts}
    said = ", ".join(f"{count:,} {named[extension]}" for extension, count in counts)
    return f"{len(names):,} other {'file' if len(names) == 1 else 'files'}: {said}"


def _masks(names: Sequence[str]) -> tuple[set[str], list[str]]:
    """Of image files those that show labels of a photo beside them, or are results of ours; and those that may be such.

    `a.mask.png` beside `a.jpg` is of the first kind; `a_mask.png` or `a.png` beside it, or `b.mask.png` alone, may be a
    photo.
    """
    stems = {name.rpartition(".")[0] for name in names}
    photos = {name.rpartition(".")[0] for name in names if kinds.is_photo(name)}
    masks, doubtful = set[str](), list[str]()
    for name in names:
        stem = name.rpartition(".")[0]
        marks = [mark for mark in re.finditer(r"[._-](?=[^/]+$)", stem) if kinds.shows_labels(stem[mark.end() :])]
        beside = {mark.group() for mark in marks if stem[: mark.start()] in stems}
        if kinds.is_result(name) or "." in beside:
            masks.add(name)
        elif beside or any(mark.group() == "." for mark in marks) or (stem in photos and not kinds.is_photo(name)):
            doubtful.append(name)
    return masks, doubtful
