"""Folders of images as shards: every image file is a sample, in order of name.

Samples are those of the pinned list (`file_list`), so that no index ever changes: a file that was added later is no
sample, one that was deleted or changed gives a row that says so.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError, ShardChanged
from pipeline.inputs import find, kinds
from pipeline.inputs.decode import MAX_BYTES
from pipeline.inputs.folder.file_list import File, FileList, files_of, pack
from pipeline.records import READER, RawSample, Shard, legible
from pipeline.storage import filesystem
from pipeline.storage.url import canonical, protocol_of, redact

AHEAD = 32  # concurrent reads: small reads mostly wait
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folder(filesystem.Entry):
    """A folder as one object: bytes of all files, and a digest of their list."""

    files: bytes  # as packed by `file_list.pack`
    left_out: str  # everything else in it, counted and named


def is_folder(url: str) -> bool:
    """Whether a URL ends in a slash, as those of folders do."""
    return url.endswith("/")


def stat_folder(folder: str, reader: int = READER) -> Folder:
    """A folder with the image files below it now, by a reader's rules. Raises ConfigError where it holds no image."""
    root = root_of(folder)
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
    left_out = [_by_extension(others)] if others else []
    left_out += [find.counted(sorted(masks), "label image")] if masks else []
    left_out += [find.counted(exports, "export")] if any(exports) else []
    left_out += found.left_out()
    if listed == NOTHING:
        shards = sorted({kinds.suffix(name) for name in others} - {""})
        hint = f"name its shards: {named}*{shards[0] if shards else '.tar'}"
        raise ConfigError(f"{named}: {'; '.join(['a folder without images', *left_out, hint])}")
    if doubtful:
        left_out.append(f"{find.counted(doubtful, 'possible mask')}, labelled like any photo")
    return Folder(root, listed.size, listed.digest, listed.data, "; ".join(left_out))


NOTHING: FileList = pack(())


def read_folder(shard: Shard, *, first: int = 0) -> Iterator[RawSample]:
    """The samples of a folder in order; those before index `first` without bytes."""
    root = shard.source or shard.url

    def read(entry: tuple[int, File, int]) -> RawSample:
        index, file, end = entry
        name = legible(file.name)
        extension = _extension(name)
        data, problem = b"", None
        if file.size > MAX_BYTES:
            problem = ("too_large", f"{name} has {file.size} bytes, more than the {MAX_BYTES} that are read")
        elif index >= first:
            try:
                data = _get(root + file.name, file)
            except ShardChanged as error:
                logger.debug("file %d: %s", index, error)
                problem = ("changed", str(error))
        return RawSample(_key(name), index, {extension: data}, extension, end, problem)

    entries = _with_ends(files_of(shard))
    for entry in islice(entries, first):
        yield read(entry)
    yield from prefetch_map(read, entries, depth=AHEAD, threads=AHEAD // 2)


def _with_ends(files: Iterator[File]) -> Iterator[tuple[int, File, int]]:
    """Files with their index and the bytes up to their end."""
    end = 0
    for index, file in enumerate(files):
        end += file.size
        yield index, file, end


def _get(url: str, file: File) -> bytes:
    """A file's bytes. Raises ShardChanged where its version is not the pinned one.

    The version is checked after reading: if it is still the pinned one then, it was so all along.
    """
    try:
        with filesystem.open_ranged(url, file.size) as stream:
            return stream.read()
    finally:
        expect_pinned(url, file.name, file.size, file.etag)


def expect_pinned(url: str, name: str, size: int, etag: str) -> None:
    """Raises ShardChanged where an object is not what was pinned. name: how it is called."""
    try:
        now = filesystem.stat(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ShardChanged(f"{name}: gone since the run began") from error
    if (now.size, now.etag) != (size, etag):
        raise ShardChanged(
            f"{name}: changed since the run began ({size} bytes, version {etag}; "
            f"now {now.size} bytes, version {now.etag})"
        )


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.split(".")[0] or last)


def root_of(folder: str) -> str:
    """The URL prefix of a folder's files."""
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
    listed = ", ".join(f"{count:,} {named[extension]}" for extension, count in counts)
    return f"{len(names):,} other {'file' if len(names) == 1 else 'files'}: {listed}"


def _masks(names: Sequence[str]) -> tuple[set[str], list[str]]:
    """Image files that are label maps of a photo beside them, or results of this project; and files that may be such.

    `a.mask.png` beside `a.jpg` is of the first kind; `a_mask.png` or `a.png` beside it, or `b.mask.png` alone, may be
    a photo.
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
