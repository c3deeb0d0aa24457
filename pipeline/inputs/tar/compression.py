"""Compressed shards as the bytes they hold."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO, cast

from zstandard import ZstdDecompressor, ZstdError

SUFFIXES = (".gz", ".tgz", ".zst", ".tzst")


def is_compressed(name: str) -> bool:
    """Told by the name, as everywhere."""
    return name.lower().endswith(SUFFIXES)


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """The stream itself, or what it holds compressed. Reading may raise what `damage` knows."""
    if not is_compressed(name):
        return stream
    if name.lower().endswith("zst"):
        return cast(IO[bytes], ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    return cast(IO[bytes], GzipFile(fileobj=stream))


class Damaged(Exception):
    """Compressed bytes that are not what was compressed."""


@contextmanager
def damage() -> Iterator[None]:
    """Whatever the decompressors raise on damaged bytes, as Damaged."""
    try:
        yield
    except (EOFError, BadGzipFile, zlib.error, ZstdError) as error:
        raise Damaged(str(error) or type(error).__name__) from error
