"""Object storage through fsspec: file systems of URLs, listings, and streams of ranged reads.

Input: URLs of any fsspec protocol, or local paths. Nothing else in the project opens a URL, except for model weights.
Every request is retried in `retry`, with one deadline; the libraries' own hidden retries are off (see `clients`).
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.utils import glob_translate

from pipeline.errors import ConfigError
from pipeline.storage.clients import client_of
from pipeline.storage.ranged_reader import FIRST_CHUNK, GAP, RangedReader
from pipeline.storage.retry import attempt
from pipeline.storage.url import WEB, local_path, protocol_of, redact

_VERSIONS = ("generation", "ETag", "etag", "Content-MD5", "mtime", "LastModified", "last_modified", "Last-Modified")
EXTRAS = {"s3": "s3", "gs": "gs", "abfs": "az"}  # of this package, by protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a store: its URL, size and version."""

    url: str
    size: int  # bytes
    etag: str


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, without hidden retries, and the path of the URL in it.

    Raises ConfigError where the protocol is unknown, its package is not installed or its settings make no sense.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        return fsspec.filesystem("file"), local_path(url)
    try:
        return client_of(protocol, url)
    except ImportError as error:
        hint = f"pip install 'diffseg[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise ConfigError(f"{redact(url)}: {protocol}:// needs a package that is not installed: {hint}") from error
    except Exception as error:  # each kind of storage has errors of its own for settings that it lacks
        raise ConfigError(f"{redact(url)}: {' '.join(str(error).split()) or type(error).__name__}") from error


def stat(url: str) -> Entry:
    """One object's size and version.

    Raises FileNotFoundError, IsADirectoryError, ConfigError, StorageError.
    """
    fs, path = filesystem(url)
    return _entry(url, attempt(redact(url), lambda: fs.info(path)))


def listed(url: str, request: Callable[[Any, str], Mapping[str, Any]]) -> dict[str, Entry | None]:
    """The result of a listing by URL, in order of URL; None for a folder. request: calls a file system with a path.

    Raises ConfigError, StorageError, FileNotFoundError.
    """
    protocol = protocol_of(url)
    if protocol in WEB:
        raise ConfigError(f"{redact(url)}: {protocol} cannot be listed; name the files, with braces or in a .txt list")
    fs, path = filesystem(url)
    found = attempt(redact(url), lambda: request(fs, path))
    urls = {name: _url_of(url, name) for name in sorted(found) if found[name]["type"] in ("file", "directory")}
    return {at: _entry(at, found[name]) if found[name]["type"] == "file" else None for name, at in urls.items()}


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob, as fsspec reads globs. Raises ConfigError."""
    try:
        return re.compile(glob_translate(pattern))
    except ValueError as error:
        raise ConfigError(f"{pattern}: {error}") from error


def _url_of(asked: str, name: str) -> str:
    """The URL of an object that a listing calls `name`; asked: the URL that was listed."""
    protocol = protocol_of(asked)
    if protocol == "file":
        return name
    host = asked.partition("://")[2].partition("/")[0]
    if protocol == "abfs" and "@" in host:  # listings name the container, not the account
        name = f"{host}/{name.lstrip('/').partition('/')[2]}"
    return f"{protocol}://{name.lstrip('/')}"


def _entry(url: str, info: Mapping[str, Any]) -> Entry:
    if info.get("type") == "directory":
        raise IsADirectoryError(url)
    if info.get("size") is None:
        raise ConfigError(f"{redact(url)}: the server does not say how large it is")
    return Entry(url, int(info["size"]), version_of(info))


def version_of(info: Mapping[str, Any]) -> str:
    """The version of an object, as its store tells it; empty where it tells none."""
    return str(next((info[name] for name in _VERSIONS if info.get(name)), "")).strip('"')


def open_ranged(url: str, size: int) -> BinaryIO:
    """An object as a stream that can jump; nothing is fetched until the first read. size: bytes, as pinned."""
    return ranged(*filesystem(url), redact(url), size, gap=0 if protocol_of(url) == "file" else GAP)


def ranged(fs: Any, path: str, what: str, size: int, gap: int = GAP) -> BinaryIO:
    """As `open_ranged`, for a known file system and path. what: how errors name the object."""
    return cast(BinaryIO, io.BufferedReader(RangedReader(fs, path, what, size, gap), FIRST_CHUNK))
