"""WebDataset tars: strict reading, where every byte is accounted for, and writing that repeats byte for byte.

webdataset's own reader stops without a word at the first damage, so members come from the standard library with the
check around it; its naming rules and its writer are used as they are.
"""

import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO

from webdataset import TarWriter
from webdataset.tariterators import base_plus_ext

from pipeline.errors import CorruptShard
from pipeline.records import RawSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "jp2", "avif")


class _StrictInfo(tarfile.TarInfo):
    """A header that may not be passed over: tarfile takes damage after the first member for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictInfo":
        at = archive.fileobj.tell()
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise CorruptShard("the archive stops without its end mark" if at else "an empty file", at) from error
        except tarfile.HeaderError as error:
            raise CorruptShard(f"damaged header at byte {at}: {error}", at) from error


def read_samples(stream: IO[bytes], name: str, *, first: int = 0, image_key: str | None = None) -> Iterator[RawSample]:
    """Group the members of a tar into samples by WebDataset's rules, and prove at the end that nothing was left unread.

    name: tells a compressed tar by its extension. first: the samples before it come by their headers alone, without
    members' bytes. image_key: the extension that holds the image; None: the first of IMAGE_EXTENSIONS that is there.
    Two neighbours of one key that repeat an extension are two samples.
    Raises CorruptShard where the archive is damaged, after the last sample that has its image whole.
    Format: https://github.com/webdataset/webdataset (naming: the key is the path up to the first dot of its last part).
    """
    key, index, members = "", -1, dict[str, bytes]()
    end = 0

    def sample() -> RawSample:
        return RawSample(key, index, members, _image_of(members, image_key), end)

    try:
        with _damage_named(stream), _open(stream, name) as archive:
            for info in _regular(archive):
                prefix, extension = base_plus_ext(info.name)
                if prefix is None or (prefix.startswith("__") and prefix.endswith("__")):
                    continue
                extension = extension.lower()
                if index < 0 or prefix != key or extension in members:
                    if index >= 0:
                        yield sample()
                    key, index, members = prefix, index + 1, {}
                members[extension] = _payload(archive, info) if index >= first else b""
                end = stream.tell()
            _prove_end(archive)
    except CorruptShard:
        if _image_of(members, image_key):
            yield sample()
        raise
    if index >= 0:
        yield sample()


def write_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A tar of (key, members by extension): the same samples give the same bytes, so that racing writers agree."""
    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0, user="", group="") as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return buffer.getvalue()


def _open(stream: IO[bytes], name: str) -> tarfile.TarFile:
    plain = GzipFile(fileobj=stream) if name.lower().endswith(("gz", "tgz")) else stream
    return tarfile.TarFile(fileobj=plain, tarinfo=_StrictInfo)


def _regular(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member of the archive
        if info.isreg():
            yield info


def _payload(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    data = file.read() if file else b""
    if len(data) != info.size:
        raise CorruptShard(f"{info.name}: {len(data)} of {info.size} bytes", info.offset_data)
    return data


def _prove_end(archive: tarfile.TarFile) -> None:
    """After the end mark only padding may follow."""
    assert archive.fileobj is not None
    while block := archive.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            at = archive.fileobj.tell()
            raise CorruptShard(f"data behind the end mark, before byte {at}", archive.offset)


@contextmanager
def _damage_named(stream: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, BadGzipFile, zlib.error) as error:
        raise CorruptShard(str(error) or type(error).__name__, stream.tell()) from error


def _image_of(members: Mapping[str, bytes], image_key: str | None) -> str | None:
    if image_key is not None:
        return image_key if image_key in members else None
    return next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
