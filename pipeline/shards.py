"""Which shards a run reads: patterns in, pinned shards out.

A pattern is a path or URL with globs and braces (`s3://b/train-{00000..00117}.tar`), or a text file that lists such
patterns, one a line. A shard's id names its outputs: two shards of one base name under different prefixes differ.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

from braceexpand import braceexpand

from pipeline import folders, storage
from pipeline.errors import ConfigError
from pipeline.folders import Folder
from pipeline.records import READER, Shard

LIST_SUFFIXES = (".txt", ".list")
PARQUET_SUFFIX = ".parquet"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")


def pin(patterns: Iterable[str], reader: int = READER) -> list[Shard]:
    """Every shard the patterns name, once, in the order given, with the size and version it has now.

    reader: by whose rules samples are told.

    Raises ConfigError for a pattern that matches nothing, a shard that is missing and a file that is no shard.
    """
    entries: dict[str, storage.Entry] = {}
    for pattern in patterns:
        for entry in _expand(pattern, reader, depth=0):
            known = entries.setdefault(_identity(entry), entry)
            if (known.size, known.etag) != (entry.size, entry.etag):
                raise ConfigError(
                    f"{storage.redact(entry.url)}: two shards that differ only in the query of their URL, which is "
                    "not recorded; give them different paths"
                )
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


def _identity(entry: storage.Entry) -> str:
    """The canonical URL; that of a folder ends in a slash."""
    return storage.canonical(entry.url) + ("/" if folders.is_folder(entry.url) else "")


def shard_id(canonical_url: str, part: int = 0) -> str:
    """`<stem>-<12 hex digits of the canonical URL's blake2b>`. part: n for the n-th extension of a folder."""
    named = canonical_url + (f"#{part}" if part else "")
    digest = hashlib.blake2b(named.encode(), digest_size=6).hexdigest()
    return f"{storage.stem(canonical_url)}-{digest}"


def _expand(pattern: str, reader: int, depth: int) -> Iterator[storage.Entry]:
    try:
        urls = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{storage.redact(pattern)}: unbalanced braces") from error
    for url in urls:
        storage.protocol_of(url)  # refuses what may not be opened before anything is
    plain = [url for url in urls if not _is_glob(url)]
    with ThreadPoolExecutor(16) as threads:
        found = dict(zip(plain, threads.map(partial(_stat, reader=reader), plain), strict=True))
    for url in urls:
        if _is_glob(url):
            matches = storage.expand_glob(url)
            if not matches:
                raise ConfigError(f"{storage.redact(url)}: matches no file")
            yield from (_checked(entry) for entry in matches)
        elif PurePosixPath(storage.redact(url)).suffix in LIST_SUFFIXES:
            if depth:
                raise ConfigError(f"{storage.redact(url)}: a list may not name another list")
            for line in _lines(found[url]):
                yield from _expand(line, reader, depth + 1)
        else:
            yield _checked(found[url])


def _is_glob(url: str) -> bool:
    return any(c in url for c in "*[") or ("?" in url and storage.protocol_of(url) not in ("http", "https"))


def _stat(url: str, reader: int) -> storage.Entry:
    try:
        return storage.stat(url)
    except FileNotFoundError as error:
        raise ConfigError(f"{storage.redact(url)}: no such shard") from error
    except IsADirectoryError as error:
        try:
            return folders.stat_folder(url, reader)
        except FileNotFoundError:
            example = f"{storage.redact(url).rstrip('/')}/*.tar"
            raise ConfigError(f"{storage.redact(url)}: a folder without images; name its shards: {example}") from error


def _checked(entry: storage.Entry) -> storage.Entry:
    name = storage.redact(entry.url).lower()
    if not (folders.is_folder(name) or name.endswith((*SHARD_SUFFIXES, PARQUET_SUFFIX))):
        possible = ", ".join((*SHARD_SUFFIXES, PARQUET_SUFFIX))
        raise ConfigError(f"{storage.redact(entry.url)}: not a shard; possible are {possible} and folders of images")
    return entry


def _lines(entry: storage.Entry) -> list[str]:
    with storage.open_ranged(entry.url, entry.size) as stream:
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
