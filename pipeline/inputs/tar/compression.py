"""Decompression of shards."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO, cast

from zstandard import ZstdDecompressor, ZstdError

SUFFIXES = (".gz", ".tgz", ".zst", ".tzst")


def is_compressed(name: str) -> bool:
    """Whether a name is that of a compressed file."""
    return name.lower().endswith(SUFFIXES)


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """The stream, decompressed by its name. Reading may raise the errors that `damage` translates."""
    if not is_compressed(name):
        return stream
    if name.lower().endswith("zst"):
        return cast(IO[bytes], ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    return cast(IO[bytes], GzipFile(fileobj=stream))


class Damaged(Exception):
    """Damaged compressed bytes."""


@contextmanager
def damage() -> Iterator[None]:
    """Translate the errors of the decompressors on damaged bytes into Damaged."""
    try:
        yield
    except (EOFError, BadGzipFile, zlib.error, ZstdError) as error:
        raise Damaged(str(error) or type(error).__name__) from error
