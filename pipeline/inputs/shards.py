"""Shards of a run: patterns (paths and URLs, globs, braces, and text files of them) become pinned shards.

An existing name is not read as a pattern: `in [raw]/a.tar`, `s3://b/a?b.tar`. A shard's id names its outputs: ids of
shards with one base name under different prefixes differ.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import TextIOWrapper
from itertools import islice
from os.path import lexists
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from braceexpand import braceexpand

from pipeline.errors import ConfigError, PipelineError
from pipeline.inputs import find, kinds
from pipeline.inputs.folder import reading
from pipeline.inputs.folder.reading import Folder
from pipeline.records import READER, Shard
from pipeline.storage import filesystem
from pipeline.storage.filesystem import Entry
from pipeline.storage.url import canonical, local_path, protocol_of, redact, refuse_query, stem

Note: TypeAlias = Callable[[str], None]  # called with a line about inputs that are left out
_GLOB = set("*?[")
_PATTERN = _GLOB | set("{}\\")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")
MOST, DIGITS = 1_000_000, 40  # names of one pattern; digits of a number in it
LONGEST_LIST = 256 << 20  # bytes
_WEB = ("http://", "https://")


def pin(patterns: Iterable[str], reader: int = READER, note: Note = lambda line: None) -> list[Shard]:
    """Every shard the patterns name, once, in the order given, with the size and version it has now.

    reader: the version of the rules for samples. note: called with a line about inputs that are left out.

    Raises ConfigError for a pattern that matches nothing, a shard that is missing and a file that is no shard.
    """
    entries: dict[str, filesystem.Entry] = {}
    for pattern in patterns:
        for entry in expand(pattern, reader, note):
            if len(entries) > MOST:
                raise ConfigError(f"more than {MOST:,} shards; make several runs of them")
            known = entries.setdefault(_identity(entry, reader), entry)
            if (known.size, known.etag) != (entry.size, entry.etag):
                raise ConfigError(
                    f"{redact(entry.url)}: two shards that differ only in the query of their URL, which is "
                    "not recorded; give them different paths"
                )
    for entry in entries.values():
        if isinstance(entry, Folder) and entry.left_out:
            note(f"{redact(entry.url)}: {entry.left_out}")
    if not entries:
        raise ConfigError("no shards given: name tar files, globs or braces, for example 'photos-{00000..00009}.tar'")
    return [
        Shard(
            shard_id(url),
            url,
            entry.size,
            entry.etag,
            entry.url,
            entry.files if isinstance(entry, Folder) else "",
            reader,
        )
        for url, entry in entries.items()
    ]


def _identity(entry: filesystem.Entry, reader: int) -> str:
    """The canonical URL; that of a folder ends in a slash, that of a link has the link's name where only it tells the
    kind of shard.
    """
    url = canonical(entry.url)
    if reading.is_folder(entry.url):
        return f"{url}/"
    if reader > 1 and kinds.suffix(url) != kinds.suffix(redact(entry.url)):
        return canonical(entry.url, follow=False)
    return url


def shard_id(canonical_url: str, part: int = 0) -> str:
    """`<stem>-<12 hex digits of the canonical URL's blake2b>`. part: n for the n-th extension of a folder."""
    named = canonical_url + (f"#{part}" if part else "")
    digest = hashlib.blake2b(named.encode(), digest_size=6).hexdigest()
    return f"{stem(canonical_url)}-{digest}"


def expand(pattern: str, reader: int, note: Note, *, listed: bool = False) -> Iterator[Entry]:
    """The objects of a pattern, in the order given, those of a glob in order of name. reader: see `records.READER`.

    listed: the pattern stands in a list, where no list may. Raises ConfigError for a pattern that matches nothing, a
    shard that is missing and a file that is no shard.
    """
    parts = [_literal_and_glob(url) if reader > 1 else _by_letters(url) for url in _braces(pattern, reader)]
    plain = [url for url, glob in parts if not glob]
    with ThreadPoolExecutor(16) as threads:
        found = dict(zip(plain, threads.map(lambda url: _stat(url, reader), plain), strict=True))
    for url, glob in parts:
        if glob:
            yield from map(_checked, _matches(url, glob, note))
        elif not isinstance(found[url], Folder) and PurePosixPath(redact(url)).suffix in kinds.LIST_SUFFIXES:
            if listed:
                raise ConfigError(f"{redact(url)}: a list may not name another list")
            for line in _lines(found[url], reader, note):
                yield from expand(line, reader, note, listed=True)
        else:
            yield _checked(found[url])


def _braces(pattern: str, reader: int) -> list[str]:
    """Expand the braces of a pattern; braces of an existing name are kept."""
    if reader > 1:
        refuse_query(pattern)
    by_name = reader > 1 and not pattern.startswith(_WEB)  # in URLs of the web a brace is no letter
    literal, rest = _split(pattern) if by_name else ("", pattern)
    if not rest:
        return [pattern]
    if _count(rest) > MOST:
        raise ConfigError(
            f"{redact(pattern[:200])}: braces for more than {MOST:,} names; name them in several patterns"
        )
    try:
        urls = [f"{literal.rstrip('/')}/{name}" if literal else name for name in braceexpand(rest)]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{redact(pattern[:200])}: unbalanced braces") from error
    for url in urls:
        protocol_of(url)  # refuses what may not be opened before anything is
    return urls


def _count(pattern: str) -> int:
    """The most names that braces can make, from their numbers alone."""
    count = math.prod(part.count(",") + 1 for part in pattern.split("{")[1:])
    for first, last, step in _RANGE.findall(pattern):
        if len(first) > DIGITS or len(last) > DIGITS or len(step) > DIGITS:
            return MOST + 1
        count *= abs(int(last) - int(first)) // max(1, abs(int(step or 1))) + 1
    return count


def _by_letters(url: str) -> tuple[str, str]:
    """A name and a glob, told by its characters alone: for reader 1."""
    glob = bool(_GLOB & set(url) - set("?" if url.startswith(_WEB) else ""))
    return ("", url) if glob else (url, "")


def _literal_and_glob(url: str) -> tuple[str, str]:
    """A name, or the folder of a glob and the glob."""
    folder, rest = _split(url)
    return (folder, rest) if not rest or _GLOB & set(rest) else (f"{folder.rstrip('/')}/{rest}" if folder else url, "")


def _split(url: str) -> tuple[str, str]:
    """The literal beginning of a URL, which is no pattern or exists by that name, and the pattern after it."""
    scheme, mark, path = url.partition("://")
    if url.startswith(_WEB):
        return ("", url) if set(url) & set("*[") and not exists(url) else (url, "")
    if not mark or scheme in ("file", "local"):
        first = url.partition("/")[0]
        named = lexists(url) or (first != "~" and lexists(first))
        if not mark and ":" in first and not named:
            return "", url  # an unknown protocol
        path = url if named else local_path(url)
        scheme, mark, path = "", "", path if path.startswith("/") else f"{Path.cwd()}/{path}"
    elif set(scheme) & _PATTERN:
        return "", url
    parts = path.split("/")
    for level, part in enumerate(parts):
        if set(part) & _PATTERN and not exists(f"{scheme}{mark}{'/'.join(parts[: level + 1])}"):
            beginning, rest = "/".join(parts[:level]), "/".join(parts[level:])
            return (f"{scheme}{mark}{beginning}" or "/", rest) if level else ("", url)
    return f"{scheme}{mark}{path}", ""


def exists(url: str) -> bool:
    """Whether a file, an object or a folder of this name exists, as far as access rights tell."""
    try:
        filesystem.stat(url)
    except IsADirectoryError:
        return True
    except (FileNotFoundError, ConfigError):  # the latter: a store may refuse access to what it does not have
        return False
    return True


def _stat(url: str, reader: int) -> Entry:
    try:
        return filesystem.stat(url)
    except FileNotFoundError as error:
        raise ConfigError(f"{redact(url)}: no such shard") from error
    except IsADirectoryError:
        return reading.stat_folder(url, reader)


def _matches(folder: str, pattern: str, note: Note) -> list[Entry]:
    """Files that match a glob; other matches are reported. folder: empty where the pattern begins with the URL."""
    if not folder:
        if entries := find.glob_without_links(pattern):
            return entries
        raise ConfigError(f"{redact(pattern)}: matches no file")
    asked = any(part.startswith(".") for part in pattern.split("/"))
    found = find.expand_glob(folder, pattern.rstrip("/"), lambda name: not asked and kinds.is_system(name))
    left_out = found.left_out()
    if found.folders and "**" not in pattern:
        left_out.append(find.counted(found.folders, "folder"))
    where = f"{redact(folder).rstrip('/')}/{pattern}: "
    if not found.entries:
        raise ConfigError(where + "; ".join(["matches no file", *left_out]))
    if left_out:
        note(where + "; ".join([*left_out, "not read"]))
    return found.entries


def _checked(entry: Entry) -> Entry:
    refuse_query(entry.url)
    if reading.is_folder(entry.url) or kinds.suffix(redact(entry.url)):
        return entry
    refusal = f"{redact(entry.url)}: not a shard"
    what, ends = kinds.looks_like(_head(entry)) or ("", ())
    if ends:
        raise ConfigError(
            f"{refusal} by its name; it holds {what}: let the name, or that of a link to it, end in {ends[0]}"
        )
    possible = ", ".join((*kinds.SHARD_SUFFIXES, kinds.PARQUET_SUFFIX))
    raise ConfigError(f"{refusal}{f' but {what}' if what else ''}; possible are {possible} and folders of images")


def _head(entry: Entry) -> bytes:
    with suppress(PipelineError, FileNotFoundError), filesystem.open_ranged(entry.url, entry.size) as stream:
        return stream.read(kinds.HEAD)
    return b""  # it only makes a refusal clearer


def _lines(entry: Entry, reader: int, note: Note) -> list[str]:
    if entry.size > LONGEST_LIST:
        raise ConfigError(f"{redact(entry.url)}: {entry.size:,} bytes are more than a list may have")
    with TextIOWrapper(filesystem.open_ranged(entry.url, entry.size), "utf-8-sig", errors="replace") as text:
        named = (line for line in map(str.strip, text) if line and not line.startswith("#"))
        lines = list(islice(named, MOST + 1))
    if len(lines) > MOST:
        raise ConfigError(f"{redact(entry.url)}: a list of more than {MOST:,} names; make several lists and runs of it")
    system = [line for line in lines if reader > 1 and kinds.is_system_file(line)]
    if system:
        note(f"{redact(entry.url)}: {find.counted(system, 'hidden or system file')}; not read")
    hidden = set(system)
    return [line for line in lines if line not in hidden]
