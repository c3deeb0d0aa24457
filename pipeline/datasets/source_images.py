"""Source images of a run, in order or one by one: from the shards it was made from, or from its own tars.

The headers of a tar are read once before single samples are read from it; other shards (compressed tars, folders,
Parquet) are read up to the sample.
"""

import io
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import BinaryIO

from pipeline.errors import ConfigError, CorruptShard, ShardChanged
from pipeline.inputs.reader import HEADERS_ONLY, read_shard
from pipeline.inputs.tar.reading import image_of, read_samples
from pipeline.records import RawSample, Shard
from pipeline.run.layout import WindowObject, window_stem
from pipeline.run.ledger import Ledger
from pipeline.storage import filesystem

WALKED = 256  # tars whose sample offsets are cached: eight bytes a sample
END_MARK = bytes(1024)  # ends every tar, a part of one too
LABEL_MAP = "label_map.png"  # what `--also webdataset` puts beside the members of a sample


class SourceImages:
    """Reads the encoded images of a run."""

    def __init__(self, ledger: Ledger, *, beside: bool = False, whole: bool = False, jumps: bool = False) -> None:
        """beside: from the tars that `--also webdataset` wrote. whole: with the other members of a sample.

        jumps: tars are read from many positions in any order, so that reading their headers once pays off.

        Raises ConfigError where the run has no tars and they are asked for.
        """
        if beside and "webdataset" not in ledger.run.also:
            raise ConfigError(f"{ledger}: has no tars of its own, it was made without --also webdataset")
        self.ledger, self.beside, self.whole, self.jumps = ledger, beside, whole, jumps
        self._ends = lru_cache(WALKED)(self._walk)

    def object_of(self, window: WindowObject) -> str:
        """The object that holds the images of a window: the id of its shard, or the name of its tar."""
        if not self.beside:
            return window.shard
        return f"webdataset/{window_stem(window.shard, window.window, window.revision)}.tar"

    def through(self, window: WindowObject, first: int) -> Iterator[RawSample]:
        """Samples in order, those before index `first` without bytes, to the end of the object that holds them."""
        image_key = self.ledger.run.image_key
        if not self.beside:
            shard = self.ledger.shards[window.shard]
            if self.jumps and 0 < first < HEADERS_ONLY and is_plain_tar(shard):
                yield from self._from_within(window, first)
            else:
                yield from read_shard(shard, first=first, image_key=image_key, whole=self.whole)
            return
        base = self._base(window)
        with self._open(window) as stream:
            for raw in read_samples(stream, "window.tar", first=first - base, reader=self.ledger.run.reader):
                yield self._own(raw, base + raw.index)

    def at(self, window: WindowObject, index: int) -> RawSample:
        """One sample. Raises ShardChanged where it is missing."""
        shard = self.ledger.shards[window.shard]
        if self.beside:
            base, ends = self._base(window), self._ends(window.shard, window.window, window.revision)
        elif is_plain_tar(shard):
            base, ends = 0, self._ends(window.shard, 0, 0)
        else:
            return _first((raw for raw in self.through(window, index) if raw.index == index), shard, index)
        position = index - base
        if position >= len(ends):
            return _first(iter(()), shard, index)
        start = ends[position - 1] if position else 0
        with self._open(window) as stream:
            stream.seek(start)
            piece = io.BytesIO(stream.read(ends[position] - start) + END_MARK)
        image_key = None if self.beside else self.ledger.run.image_key
        found = read_samples(piece, "piece.tar", image_key=image_key, reader=self.ledger.run.reader)
        raw = _first(found, shard, index)
        return self._own(raw, index) if self.beside else replace(raw, index=index)

    def _from_within(self, window: WindowObject, first: int) -> Iterator[RawSample]:
        ends, shard = self._ends(window.shard, 0, 0), self.ledger.shards[window.shard]
        if first > len(ends):
            return
        with self._open(window) as stream:
            stream.seek(ends[first - 1])
            run = self.ledger.run
            for raw in read_samples(stream, shard.url, image_key=run.image_key, whole=self.whole, reader=run.reader):
                yield replace(raw, index=first + raw.index)

    def _open(self, window: WindowObject) -> BinaryIO:
        if self.beside:
            return self.ledger.store.reader(self.object_of(window))
        shard = self.ledger.shards[window.shard]
        return filesystem.open_ranged(shard.source or shard.url, shard.size)

    def _base(self, window: WindowObject) -> int:
        return window.window * self.ledger.run.window

    def _own(self, raw: RawSample, index: int) -> RawSample:
        """A sample of the run's own tar without the labels that were added to it."""
        members = {extension: data for extension, data in raw.members.items() if extension != LABEL_MAP}
        run = self.ledger.run
        return replace(raw, index=index, members=members, image=image_of(members, run.image_key, run.reader))

    def _walk(self, shard: str, window: int, revision: int) -> "array[int]":
        """Offsets in bytes at which the samples of a tar end."""
        ends = array("q")
        with suppress(CorruptShard):  # samples before the damage were labelled
            for raw in self.through(WindowObject(shard, window, revision, "", 0), HEADERS_ONLY):
                ends.append(raw.end)
        return ends


def is_plain_tar(shard: Shard) -> bool:
    """Whether a sample can be reached without reading those before it."""
    return shard.url.lower().endswith(".tar")


def _first(found: Iterator[RawSample], shard: Shard, index: int) -> RawSample:
    raw = next(found, None)
    if raw is None:
        raise ShardChanged(f"{shard.url}: has no sample {index} any more")
    return raw
