"""Shards in, samples out: opens a pinned shard, proves it is still the one that was pinned, and decodes its images."""

import hashlib
from collections.abc import Iterator

from pipeline import images, storage
from pipeline.errors import ShardChanged
from pipeline.records import ImageSample, RawSample, SampleFailure, Shard
from pipeline.tars import read_samples


def read_shard(shard: Shard, *, first: int = 0, image_key: str | None = None) -> Iterator[RawSample]:
    """The samples of a shard in order; those before index `first` by their headers alone, without bytes.

    Raises ShardChanged where size or version differ from the pin, before the first sample or after the last;
    CorruptShard for damage; StorageError where the store gave out.
    """
    source = shard.source or shard.url
    _same_version(shard, source)
    with storage.open_ranged(source, shard.size) as stream:
        yield from read_samples(stream, shard.url, first=first, image_key=image_key)
    _same_version(shard, source)


def _same_version(shard: Shard, source: str) -> None:
    try:
        now = storage.stat(source)
    except FileNotFoundError as error:
        raise ShardChanged(f"{shard.url}: gone since the run began") from error
    if (now.size, now.etag) != (shard.size, shard.etag):
        raise ShardChanged(
            f"{shard.url}: changed since the run began ({shard.size} bytes, version {shard.etag}; "
            f"now {now.size} bytes, version {now.etag})"
        )


def decode_sample(raw: RawSample) -> ImageSample | SampleFailure:
    """One sample's image; an undecodable one is a value, not an error."""
    if raw.image is None:
        found = ", ".join(sorted(raw.members)) or "nothing"
        return SampleFailure(raw, "no_image", f"no image among its members: {found}")
    data = raw.members[raw.image]
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return ImageSample(raw, images.decode(data), sha256)
    except images.UndecodableImage as error:
        width, height = error.size or (None, None)
        return SampleFailure(raw, error.reason, str(error), width, height, sha256)
