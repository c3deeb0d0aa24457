"""Object storage through fsspec: what a URL means, what lies there, and opening it for ranged reads.

Goes in: URLs of any fsspec protocol, or local paths. Nothing else in the project opens a URL (model weights apart).
Every request is retried in `retrying`, with one deadline; the libraries' own hidden retries are off.
"""

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from types import MethodType
from typing import Any, BinaryIO, cast

import fsspec

from pipeline.errors import ConfigError
from pipeline.ranges import FIRST_CHUNK, GAP, RangedReader
from pipeline.records import legible
from pipeline.retrying import attempt

POSSIBLE = "use a path or file://, s3://, gs://, az://, https://"
EXTRAS = {"s3": "s3", "gs": "gs", "abfs": "az"}  # of this package, by protocol

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 32,
        },
    },
    "gs": {"use_listings_cache": False, "requests_timeout": 60},
    "abfs": {"use_listings_cache": False, "connection_timeout": 10, "read_timeout": 60},
}
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "local": "file"}
_WEB = ("http", "https")
# Layers over other file systems, and what runs programs or holds nothing that another process could read.
_NOT_STORAGE = {"simplecache", "filecache", "blockcache", "cached", "async_wrapper", "dir", "dirfs", "generic", "data"}
_NOT_STORAGE |= {"reference", "zip", "tar", "libarchive", "archive", "dask", "lakefs", "asynclocal"}


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: where it is and which version of it."""

    url: str
    size: int  # bytes
    etag: str


def protocol_of(url: str) -> str:
    """The fsspec protocol of a URL or path, aliases folded into one.

    Raises ConfigError for a protocol fsspec does not know, for `pipe:` and for chained URLs.
    """
    head, colon, rest = url.partition(":")
    if not colon or "/" in head or (os.name == "nt" and len(head) == 1):
        return "file"
    if "::" in url:
        raise ConfigError(f"{redact(url)}: chained URLs are not supported, give the inner one")
    protocol = _ALIASES.get(head, head)
    if not rest.startswith("//") or protocol in _NOT_STORAGE or protocol not in fsspec.available_protocols():
        raise ConfigError(f"{redact(url)}: no storage protocol {head!r}; {POSSIBLE}")
    return protocol


def redact(url: str) -> str:
    """The URL as it may be shown and recorded: without user info and query.

    What stands before the @ of an Azure URL is the container, and `#` is a letter in the names of objects.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme in ("file", "local"):
        return url
    place = rest.split("?", 1)[0]
    place = place.split("#", 1)[0] if scheme in _WEB else place
    host, slash, path = place.partition("/")
    user, _, machine = host.rpartition("@")
    container = f"{user.partition(':')[0]}@" if user and _ALIASES.get(scheme, scheme) == "abfs" else ""
    return f"{scheme}://{container}{machine}{slash}{path}"


def canonical(url: str) -> str:
    """One spelling for one place: absolute, alias folded, neither user info nor query, no slash at the end.

    Slashes within are left alone: `a//b` and `a/b` are two objects of a bucket.
    Raises ConfigError where the name is not UTF-8: it could not be written down.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        url = "file://" + str(Path(_local(url)).absolute().resolve())
    if legible(url) != url:
        raise ConfigError(f"{legible(redact(url))}: a name that is not UTF-8: rename it, or put a link beside it")
    if protocol == "file":
        return url
    return f"{protocol}://{redact(url).partition('://')[2].rstrip('/')}"


def stem(url: str) -> str:
    """The name of an object without its extensions, in letters that any file system takes."""
    name = PurePosixPath(redact(url)).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80] or "shard"


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, without hidden retries, and the path it knows the place by.

    Raises ConfigError where the protocol is unknown, its package is not installed or its settings make no sense.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        return fsspec.filesystem("file"), _local(url)
    try:
        kind = fsspec.get_filesystem_class(protocol)
        options = {**_OPTIONS.get(protocol, {}), **kind._get_kwargs_from_urls(url)}
        with _making:
            return _connected(protocol, json.dumps(options, sort_keys=True)), kind._strip_protocol(url)
    except ImportError as error:
        hint = f"pip install 'diffseg[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise ConfigError(f"{redact(url)}: {protocol}:// needs a package that is not installed: {hint}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{redact(url)}: {str(error).splitlines()[0]}") from error


_making = Lock()


@cache
def _connected(protocol: str, options: str) -> Any:
    """One client for the process: fsspec alone would make one a thread, each with connections of its own."""
    fs = fsspec.filesystem(protocol, skip_instance_cache=True, **json.loads(options))
    match protocol:
        case "s3":
            fs.retries = 1
        case "gs" if hasattr(request := type(fs)._request, "__wrapped__"):
            fs._request = MethodType(request.__wrapped__, fs)
        case "abfs":
            fs.service_client._config.retry_policy.total_retries = 0
    return fs


def _local(url: str) -> str:
    return url.partition("://")[2] if "://" in url else str(Path(url).expanduser())


def stat(url: str) -> Entry:
    """One object's size and version.

    Raises FileNotFoundError, IsADirectoryError, ConfigError, StorageError.
    """
    fs, path = filesystem(url)
    return _entry(url, attempt(redact(url), lambda: fs.info(path)))


def expand_glob(pattern: str) -> list[Entry]:
    """The objects a pattern matches, in order of name; one listing, however many they are."""
    return _listed(pattern, lambda fs, path: fs.glob(path, detail=True))


def walk(folder: str) -> list[Entry]:
    """Every object below a folder, in order of name; empty where there is none."""
    try:
        return _listed(folder, lambda fs, path: fs.find(path, detail=True))
    except FileNotFoundError:
        return []


def _listed(url: str, request: Any) -> list[Entry]:
    protocol = protocol_of(url)
    if protocol in _WEB:
        raise ConfigError(f"{redact(url)}: {protocol} cannot be listed; name the files, with braces or in a .txt list")
    fs, path = filesystem(url)
    found = attempt(redact(url), lambda: request(fs, path))
    return [_entry(_url_of(url, name), found[name]) for name in sorted(found) if found[name]["type"] == "file"]


def _url_of(asked: str, name: str) -> str:
    """The URL of what a listing calls `name`; asked: the URL that was listed."""
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
    versions = ("generation", "ETag", "etag", "Content-MD5", "mtime", "LastModified", "last_modified", "Last-Modified")
    version = next((info[name] for name in versions if info.get(name)), "")
    return Entry(url, int(info["size"]), str(version).strip('"'))


def open_ranged(url: str, size: int) -> BinaryIO:
    """An object as a stream that can jump; nothing is fetched until the first read. size: bytes, as pinned."""
    return ranged(*filesystem(url), redact(url), size, gap=0 if protocol_of(url) == "file" else GAP)


def ranged(fs: Any, path: str, what: str, size: int, gap: int = GAP) -> BinaryIO:
    """The same where the file system is at hand. what: how errors name the object."""
    return cast(BinaryIO, io.BufferedReader(RangedReader(fs, path, what, size, gap), FIRST_CHUNK))
