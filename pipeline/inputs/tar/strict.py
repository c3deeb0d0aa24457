"""Archives read strictly: no damaged header is passed over, and every byte up to the end is accounted for.

The only file that uses private names of tarfile; `tests/test_private_names.py` says which versions have them.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pipeline.errors import CorruptShard
from pipeline.inputs.tar import compression
from pipeline.records import legible

MAX_EXTENDED_HEADER = 1 << 20  # bytes of long names and attributes before a member; real ones have a few hundred
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _StrictInfo(tarfile.TarInfo):
    """A header that may not be passed over: tarfile takes damage after the first member for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in (*_EXTENDED, *_LONG) and info.size > MAX_EXTENDED_HEADER):
            raise tarfile.HeaderError(f"a size of {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictInfo":
        at = archive.fileobj.tell()
        try:
            info = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise CorruptShard("the archive stops without its end mark" if at else "an empty file", at) from error
        except (tarfile.HeaderError, ValueError, OverflowError, LookupError) as error:
            # tarfile parses extended headers without a check of its own
            raise CorruptShard(f"damaged header at byte {at}: {error}", at) from error
        if info.size < 0 or archive.offset <= at:
            raise CorruptShard(f"damaged header at byte {at}: it points backwards", at)
        return info


@contextmanager
def open_strict(stream: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    """An archive, compressed or not by its name. Raises CorruptShard for whatever damage is met while it is open."""
    try:
        with compression.damage():
            source = compression.decompressed(stream, name)
            with tarfile.TarFile(fileobj=source, tarinfo=_StrictInfo) as archive:
                yield archive
    except (tarfile.TarError, compression.Damaged) as error:
        at = min(stream.tell(), stream.seek(0, io.SEEK_END))  # tarfile looks for a member where there is none any more
        raise CorruptShard(str(error) or type(error).__name__, at) from error


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and links; folders, devices and the like hold no sample."""
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member of the archive
        if info.isreg() or info.islnk() or info.issym():
            info.name, info.linkname = legible(info.name), legible(info.linkname)
            yield info


def prove_end(archive: tarfile.TarFile) -> None:
    """Check that after the end mark only padding follows. Raises CorruptShard."""
    assert archive.fileobj is not None
    while block := archive.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise CorruptShard(f"data behind the end mark at byte {archive.offset}", archive.offset)
