"""URLs: protocols that name storage, the canonical spelling, and parts that are secret."""

import os
import re
from pathlib import Path, PurePosixPath

import fsspec

from pipeline.errors import ConfigError
from pipeline.records import legible

POSSIBLE = "use a path or file://, s3://, gs://, az://, https://"
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "local": "file"}
WEB = ("http", "https")
# Of the URL of an object, whose name may hold any letter: `?versionId=1`, not `a?b.tar` or `photo.php?id=1.jpg`
_QUERY = re.compile(r"\?[\w.~%-]+=(?![^?&]*\.[A-Za-z]\w{0,9}$).*", re.DOTALL)
# Layers over other file systems, and what runs programs or holds nothing that another process could read.
_NOT_STORAGE = {"simplecache", "filecache", "blockcache", "cached", "async_wrapper", "dir", "dirfs", "generic", "data"}
_NOT_STORAGE |= {"reference", "zip", "tar", "libarchive", "archive", "dask", "lakefs", "asynclocal"}
_NOT_STORAGE |= {"jupyter", "jlab", "git", "github", "gist", "gitea", "dbfs", "root", "pyscript", "tos", "tosfs"}
_SLASHED = re.compile(r"^[^/@]*:(?!\d{1,5}/)[^/@]*/.*@", re.DOTALL)  # a user whose password holds a slash


def protocol_of(url: str) -> str:
    """The fsspec protocol of a URL or path, aliases folded into one.

    Raises ConfigError for a protocol fsspec does not know, for `pipe:` and for chained URLs.
    """
    head, colon, rest = url.partition(":")
    if not colon or "/" in head or (os.name == "nt" and len(head) == 1):
        return "file"
    first, *layers = url.split("::")
    if layers and ("://" not in first or any("://" in layer for layer in layers)):
        raise ConfigError(f"{redact(url)}: chained URLs are not supported, give the inner one")
    protocol = _ALIASES.get(head, head)
    if not rest.startswith("//") or protocol in _NOT_STORAGE or protocol not in fsspec.available_protocols():
        raise ConfigError(f"{redact(url)}: no storage protocol {head!r}; {POSSIBLE}")
    if protocol != "file" and _SLASHED.match(rest[2:]):
        raise ConfigError(f"{redact(url)}: write a slash in a password as %2F, or give it by the environment")
    return protocol


def redact(url: str) -> str:
    """The URL as it may be shown and recorded: without user info and query.

    The part before the @ of an Azure URL is the container; `#` and `?` may occur in names of objects.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme in ("file", "local"):
        return url
    location = re.split("[?#]", rest, maxsplit=1)[0] if scheme in WEB else _QUERY.sub("", rest)
    host, slash, path = _SLASHED.sub("", location, count=1).partition("/")
    user, _, machine = host.rpartition("@")
    container = f"{user.partition(':')[0]}@" if user and _ALIASES.get(scheme, scheme) == "abfs" else ""
    return f"{scheme}://{container}{machine}{slash}{path}"


def refuse_query(url: str) -> None:
    """Raises ConfigError where the URL of an object has a query: every store here would ignore it."""
    scheme, mark, _ = url.partition("://")
    if mark and scheme not in ("file", "local", *WEB) and _QUERY.search(url):
        raise ConfigError(f"{redact(url)}: what follows reads like a query; give the name of an object alone")


def canonical(url: str, *, follow: bool = True) -> str:
    """The canonical URL: absolute, alias folded, without user info, query and slash at the end.

    Slashes within are left alone: `a//b` and `a/b` are two objects of a bucket. follow: where the path of a disk is
    a link, whether its target is meant, or the link.
    Raises ConfigError where the name is not UTF-8: it could not be written down.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        path = Path(local_path(url)).absolute()
        url = f"file://{path.resolve() if follow else path.parent.resolve() / path.name}"
    if legible(url) != url:
        raise ConfigError(f"{legible(redact(url))}: a name that is not UTF-8: rename it, or put a link beside it")
    if protocol == "file":
        return url
    return f"{protocol}://{redact(url).partition('://')[2].rstrip('/')}"


def stem(url: str) -> str:
    """The name of an object without its extensions, in letters that are valid on every file system."""
    name = PurePosixPath(redact(url)).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80] or "shard"


def local_path(url: str) -> str:
    """The path on a disk; `~` is expanded to the home folder where there is one."""
    return url.partition("://")[2] if "://" in url else os.path.expanduser(url)  # noqa: PTH111 - Path's raises
