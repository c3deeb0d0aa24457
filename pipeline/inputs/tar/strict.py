"""Archives read strictly: no damaged header is passed over, and every byte up to the end is accounted for.

The only file that uses private names of tarfile; `tests/test_private_names.py` says which versions have them.
"""

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO, Any, cast

from zstandard import ZstdDecompressor, ZstdError

from pipeline.errors import CorruptShard
from pipeline.records import legible
from pipeline.watch import beat

COMPRESSED = (".gz", ".tgz", ".zst", ".tzst")
DAMAGE = (EOFError, BadGzipFile, zlib.error, ZstdError)  # of compressed bytes
MAX_HEADERS = 1 << 20  # bytes of names, attributes and maps of holes before a member; real ones have a few hundred
MAX_CHAIN = 16  # headers of one member; real ones have four at most
MAX_GLOBAL = 1 << 16  # bytes of attributes that hold for all members, which each gets a copy of
MAX_DIGITS = 300  # in a row, more than a file's name can have: tarfile's expressions take their square in time
MAX_NAME = 4_096  # characters, as a path has at most
MAX_OFFSET = 1 << 62  # bytes; no stream can be asked to jump further


class _Headers:
    """The bytes of the headers of one member, of which tarfile would read as many as they claim."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._left, self.count, self.records = source, MAX_HEADERS, 0, False
        self.tell = source.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.HeaderError(f"more than {MAX_HEADERS:,} bytes")
        data = self._source.read(size)
        if size > tarfile.BLOCKSIZE and max(map(len, re.findall(rb"\d+", data)), default=0) > MAX_DIGITS:
            raise tarfile.HeaderError(f"a number of more than {MAX_DIGITS} digits")
        at, self.records, records = 0, False, data.rstrip(b"\0") if self.records else b""
        while at < len(records):
            length = int(records[at : at + 20].partition(b" ")[0])
            at += length
            if length < 1 or records[at - 1 : at] != b"\n":
                raise tarfile.HeaderError("attributes of another length than they say")
        return data


class _StrictInfo(tarfile.TarInfo):
    """A header that may not be passed over: tarfile takes damage after the first member for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise tarfile.HeaderError(f"a size of {info.size} bytes")
        return info

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        headers: Any = archive.fileobj
        headers.records = True  # what is read next
        info: tarfile.TarInfo = super()._proc_pax(archive)  # type: ignore[misc]
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictInfo":
        source: Any = archive.fileobj
        headers: Any = source if isinstance(source, _Headers) else _Headers(source)
        at = source.tell()
        archive.fileobj, headers.count = headers, headers.count + 1
        try:
            if headers.count > MAX_CHAIN:
                raise tarfile.HeaderError(f"more than {MAX_CHAIN} headers of one member")
            info = super().fromtarfile(archive)
            _check(info, archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise CorruptShard("the archive stops without its end mark" if at else "an empty file", at) from error
        except (tarfile.HeaderError, ValueError, OverflowError, LookupError) as error:
            # tarfile parses extended headers without a check of its own
            raise CorruptShard(f"damaged header at byte {at}: {error}", at) from error
        finally:
            archive.fileobj = source
        if info.size < 0 or archive.offset <= at:
            raise CorruptShard(f"damaged header at byte {at}: it points backwards", at)
        return info


def _check(info: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    """Raises HeaderError for what a header may say to tarfile and not to us."""
    if max(len(info.name), len(info.linkname)) > MAX_NAME:
        raise tarfile.HeaderError(f"a name of more than {MAX_NAME:,} characters")
    if archive.offset > MAX_OFFSET:
        raise tarfile.HeaderError(f"a size of {info.size:,} bytes")
    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > MAX_GLOBAL:
        raise tarfile.HeaderError(f"more than {MAX_GLOBAL:,} bytes of attributes for all members")
    end = 0
    holes: Any = info.sparse or ()
    for offset, size in holes:
        if offset < end or size < 0:
            raise tarfile.HeaderError("a map of holes that overlap")
        end = offset + size


def is_compressed(name: str) -> bool:
    """Whether a name is that of a compressed file."""
    return name.lower().endswith(COMPRESSED)


def _decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    if not is_compressed(name):
        return stream
    if name.lower().endswith("zst"):
        return cast(IO[bytes], ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    return cast(IO[bytes], GzipFile(fileobj=stream))


@contextmanager
def open_strict(stream: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    """An archive, compressed or not by its name. Raises CorruptShard for whatever damage is met while it is open."""
    try:
        source = _decompressed(stream, name)
        with tarfile.TarFile(fileobj=source, tarinfo=_StrictInfo) as archive:
            yield archive
    except (tarfile.TarError, *DAMAGE) as error:
        at = min(stream.tell(), stream.seek(0, io.SEEK_END))  # tarfile looks for a member where there is none any more
        raise CorruptShard(str(error) or type(error).__name__, at) from error


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and links; folders, devices and the like hold no sample."""
    while (info := archive.next()) is not None:
        beat.get()()
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member of the archive
        if info.isreg() or info.islnk() or info.issym():
            info.name, info.linkname = legible(info.name), legible(info.linkname)
            yield info


def prove_end(archive: tarfile.TarFile) -> None:
    """Check that after the end mark only padding follows. Raises CorruptShard."""
    assert archive.fileobj is not None
    while block := archive.fileobj.read(1 << 20):
        beat.get()()
        if block.strip(b"\0"):
            raise CorruptShard(f"data behind the end mark at byte {archive.offset}", archive.offset)
