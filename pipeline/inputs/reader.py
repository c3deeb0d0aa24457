"""Shard reader: opens a pinned shard, checks that its version is still the pinned one, and decodes its images."""

import hashlib
import logging
from collections.abc import Iterator
from functools import partial

from pipeline import table
from pipeline.errors import CorruptShard, StorageError
from pipeline.inputs import decode, kinds
from pipeline.inputs.folder import reading
from pipeline.inputs.tar.reading import read_samples
from pipeline.records import ImageSample, RawSample, SampleFailure, Shard
from pipeline.storage import filesystem

logger = logging.getLogger(__name__)


HEADERS_ONLY = 1 << 62  # as `first` of `read_shard`: all samples come by their headers, without bytes


def read_shard(
    shard: Shard, *, first: int = 0, image_key: str | None = None, window: int | None = None, whole: bool = True
) -> Iterator[RawSample]:
    """The samples of a shard in order; those before index `first` by their headers alone, without bytes.

    window: samples after which the version is checked again, so that what was read up to there may be committed;
    None: it is checked before the first and after the last sample only. whole: see `read_samples`.
    Raises ShardChanged where size or version differ from the pin; CorruptShard for damage that two reads agree on;
    StorageError where the store failed.
    """
    source = shard.source or shard.url

    def samples() -> Iterator[RawSample]:
        if reading.is_folder(shard.url):
            yield from reading.read_folder(shard, first=first)
            return
        with filesystem.open_ranged(source, shard.size) as stream:
            if shard.url.lower().endswith(".parquet"):
                read = partial(table.images.read_images, column=image_key)
            else:
                read = partial(read_samples, image_key=image_key, whole=whole)
            yield from read(stream, shard.url, first=first, reader=shard.reader)

    _same_version(shard, source)
    try:
        for sample in samples():
            if window and sample.index > first and sample.index % window == 0:
                _same_version(shard, source)
            yield sample
    except CorruptShard as damage:
        _same_version(shard, source)
        _confirm(shard, samples(), damage)
        where = f"damaged at byte {damage.offset:,} of {shard.size:,}: {damage}"
        raise CorruptShard(_misnamed(shard, source) or where, damage.offset) from damage
    _same_version(shard, source)


def _confirm(shard: Shard, second: Iterator[RawSample], damage: CorruptShard) -> None:
    """Read again: damage may happen in transit too; only damage found twice at one offset is the shard's own."""
    try:
        for _ in second:
            pass
    except CorruptShard as again:
        if again.offset == damage.offset:
            return
        raise StorageError(f"{shard.url}: two reads differ: {damage}; then: {again}") from damage
    raise StorageError(f"{shard.url}: damaged when it was read first, sound the second time: {damage}") from damage


def _misnamed(shard: Shard, source: str) -> str | None:
    """An explanation for a shard whose name and first bytes are of different kinds; None for others."""
    with filesystem.open_ranged(source, shard.size) as stream:
        what, suffixes = kinds.looks_like(stream.read(kinds.HEAD)) or ("", ())
    if not what or kinds.suffix(shard.url) in suffixes:
        return None
    hint = f": let the name, or that of a link to it, end in {suffixes[0]}" if suffixes else ""
    return f"its name ends in {kinds.suffix(shard.url)}, and it holds {what}{hint}"


def _same_version(shard: Shard, source: str) -> None:
    if not reading.is_folder(shard.url):  # of which each file is compared with its own pin
        reading.expect_pinned(source, shard.url, shard.size, shard.etag)


def decode_sample(raw: RawSample, reader: int, least: int | None = None) -> ImageSample | SampleFailure:
    """One sample's image; an undecodable one is a value, not an error.

    reader: of its run, by whose rules it is decoded. least: see `decode.decode_reduced`.
    """
    if raw.problem:
        return SampleFailure(raw, *raw.problem)
    if raw.image is None:
        found = ", ".join(sorted(raw.members)) or "nothing"
        return SampleFailure(raw, "no_image", f"no image, or several, among its members: {found}; see --image-key")
    data = raw.members[raw.image]
    if reader > 1 and kinds.last(raw.image) in kinds.RAW and data[:2] in (b"II", b"MM"):
        return SampleFailure(raw, "undecodable", "a camera's raw file: of its TIFF only a small preview could be read")
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return ImageSample(raw, *decode.decode_reduced(data, least, reader), sha256)
    except decode.UndecodableImage as error:
        logger.debug("sample %d (%s): %s", raw.index, raw.key, error)
        return SampleFailure(raw, error.reason, str(error), error.size, sha256)
