"""Decompression of shards."""

import zlib
from gzip import BadGzipFile, GzipFile
from typing import IO, cast

from zstandard import ZstdDecompressor, ZstdError

DAMAGE = (EOFError, BadGzipFile, zlib.error, ZstdError)  # of damaged compressed bytes
SUFFIXES = (".gz", ".tgz", ".zst", ".tzst")


def is_compressed(name: str) -> bool:
    """Whether a name is that of a compressed file."""
    return name.lower().endswith(SUFFIXES)


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """The stream, decompressed by its name. Reading may raise the errors of DAMAGE."""
    if not is_compressed(name):
        return stream
    if name.lower().endswith("zst"):
        return cast(IO[bytes], ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    return cast(IO[bytes], GzipFile(fileobj=stream))
