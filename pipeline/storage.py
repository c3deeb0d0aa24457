"""Object storage through fsspec: what a URL means, what lies there, and reading it in ranges.

Goes in: URLs of any fsspec protocol, or local paths. Nothing else in the project opens a URL (model weights apart).
Every request is retried here, with backoff, jitter and one deadline; the libraries' own hidden retries are off.
"""

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from pipeline.errors import ConfigError, StorageError, StorageFull

DEADLINE = 120.0  # seconds a request is tried again before the work around it fails
CHUNK = 8 << 20  # bytes a sequential read asks for; halves the requests of 4 MiB and still fits beside a model
FIRST_CHUNK = 64 << 10  # bytes asked for after a jump: a header is wanted, rarely what follows

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60},
    },
    "gs": {"use_listings_cache": False},
    "abfs": {"use_listings_cache": False},
}
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "local": "file"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_BUGS = (TypeError, AttributeError, LookupError, NotImplementedError, AssertionError)

T = TypeVar("T")


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
    if not rest.startswith("//") or protocol not in fsspec.available_protocols():
        raise ConfigError(
            f"{redact(url)}: no storage protocol {head!r}; use a path or file://, s3://, gs://, az://, https://"
        )
    return protocol


def redact(url: str) -> str:
    """The URL as it may be shown and recorded: without user info and query."""
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    place = rest.split("?", 1)[0].split("#", 1)[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def canonical(url: str) -> str:
    """One spelling for one place: absolute, alias folded, neither user info nor query."""
    protocol = protocol_of(url)
    if protocol == "file":
        return "file://" + str(Path(_local(url)).absolute().resolve())
    parts = redact(url).split("://", 1)[1]
    return f"{protocol}://{str(PurePosixPath(parts)) if parts else ''}"


def stem(url: str) -> str:
    """The name of an object without its extensions, in letters that any file system takes."""
    name = PurePosixPath(redact(url)).name.split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:80] or "shard"


def attempt(what: str, call: Callable[[], T], deadline: float = DEADLINE) -> T:
    """Do `call`, again while it fails in a way that may pass.

    Raises FileNotFoundError and FileExistsError as they are, ConfigError where access is refused, StorageFull where
    space ran out, StorageError for everything that outlasted the deadline.
    """
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.2, max=15),
        stop=stop_after_delay(deadline),
        reraise=True,
    )
    try:
        return retrying(call)
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        raise _translate(what, error) from error


def _translate(what: str, error: Exception) -> Exception:
    if isinstance(error, _BUGS):
        return error
    if _is_conflict(error):
        return FileExistsError(what)
    code = error.errno if isinstance(error, OSError) else None
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if code in _FULL:
        return StorageFull(f"{what}: no space left")
    if isinstance(error, _REFUSED) or code == errno.EROFS or type(error).__name__ in _NO_CREDENTIALS:
        return ConfigError(f"{what}: {reason}")
    return StorageError(f"{what}: {reason}")


def _is_conflict(error: BaseException) -> bool:
    """Whether a create-only request lost: s3fs reports some stores' 412 as OSError 22, with the reply as its cause."""
    if isinstance(error, FileExistsError):
        return True
    reply = getattr(error.__cause__, "response", None) or {}
    return reply.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def _may_pass(error: BaseException) -> bool:
    if (
        not isinstance(error, Exception)
        or isinstance(error, (*_BUGS, *_REFUSED, FileNotFoundError))
        or _is_conflict(error)
    ):
        return False
    if isinstance(error, OSError) and error.errno in (*_FULL, errno.EROFS, errno.EINVAL):
        return False
    return type(error).__name__ not in _NO_CREDENTIALS


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, without hidden retries, and the path it knows the place by.

    Raises ConfigError where the protocol is unknown or its package is not installed.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        return fsspec.filesystem("file"), _local(url)
    try:
        fs, path = fsspec.core.url_to_fs(url, **_OPTIONS.get(protocol, {}))
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gs", "abfs": "az"}.get(protocol)
        hint = f"pip install 'diffseg[{extra}]'" if extra else str(error)
        raise ConfigError(f"{redact(url)}: {protocol}:// needs a package that is not installed: {hint}") from error
    if hasattr(fs, "retries"):
        fs.retries = 1
    return fs, path


def _local(url: str) -> str:
    return url.partition("://")[2] if "://" in url else str(Path(url).expanduser())


def stat(url: str) -> Entry:
    """One object's size and version.

    Raises FileNotFoundError, ConfigError, StorageError.
    """
    fs, path = filesystem(url)
    return _entry(url, attempt(redact(url), lambda: fs.info(path)))


def expand_glob(pattern: str) -> list[Entry]:
    """The objects a pattern matches, in order of name; one listing, however many they are."""
    fs, path = filesystem(pattern)
    found = attempt(redact(pattern), lambda: fs.glob(path, detail=True))
    local = protocol_of(pattern) == "file"
    entries = ((name if local else fs.unstrip_protocol(name), info) for name, info in found.items())
    return [_entry(url, info) for url, info in sorted(entries) if info["type"] == "file"]


def _entry(url: str, info: dict[str, Any]) -> Entry:
    if info.get("type") == "directory":
        raise IsADirectoryError(url)
    version = next(
        (info[name] for name in ("ETag", "etag", "content_md5", "mtime", "LastModified") if info.get(name)), ""
    )
    return Entry(url, int(info.get("size") or 0), str(version).strip('"'))


def open_ranged(url: str, size: int) -> BinaryIO:
    """An object as a stream that can jump; nothing is fetched until the first read. size: bytes, as pinned."""
    return ranged(*filesystem(url), redact(url), size)


def ranged(fs: Any, path: str, what: str, size: int) -> BinaryIO:
    """The same where the file system is at hand. what: how errors name the object."""
    return cast(BinaryIO, io.BufferedReader(RangedReader(fs, path, what, size), FIRST_CHUNK))


class RangedReader(io.RawIOBase):
    """An object as a stream that can jump: every request is retried on its own, so a broken connection costs one chunk.

    Reads grow from FIRST_CHUNK to CHUNK while they are sequential. size: bytes as pinned; reading beyond is the end.
    Raises StorageError where the store gives fewer bytes than it announced.
    """

    def __init__(self, fs: Any, path: str, what: str, size: int) -> None:
        self._fs, self._path, self._what, self._size = fs, path, what, size
        self._at, self._start, self._data, self._next = 0, 0, b"", FIRST_CHUNK

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Jump; nothing is fetched until the next read."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the chunk at hand goes."""
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._data):
            self._fetch()
        offset = self._at - self._start
        taken = self._data[offset : offset + len(buffer)]
        buffer[: len(taken)] = taken
        self._at += len(taken)
        return len(taken)

    def _fetch(self) -> None:
        sequential = self._at == self._start + len(self._data)
        self._next = min(self._next * 4, CHUNK) if sequential and self._data else FIRST_CHUNK
        end = min(self._at + self._next, self._size)

        def request() -> bytes:
            data: bytes = self._fs.cat_file(self._path, start=self._at, end=end)
            if len(data) != end - self._at:
                raise ConnectionError(f"{len(data)} of {end - self._at} bytes came from offset {self._at}")
            return data

        self._data, self._start = attempt(self._what, request), self._at
