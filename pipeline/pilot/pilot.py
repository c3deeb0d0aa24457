"""A pilot: some images of all shards, labelled at several thresholds or cut at several heights, show what a run would
give and cost.

Images are drawn by seed, in groups of a few neighbours. The model sees each image once, whatever the thresholds; every
stage is timed as a worker runs it, without the loading of the model and its first batch.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

from diffseg.cut import Cut
from diffseg.segmenter import DiffSeg, Model
from diffseg.types import UInt8
from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError, PipelineError
from pipeline.gallery.preview import heights_around
from pipeline.inputs.count import Counts, count
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.inputs.tasks import draw
from pipeline.pilot.compare import PILOT, Comparing, Labelling, Rates, Thresholds, Timed, named
from pipeline.records import OK, ImageSample, LabelRecord, RawSample, SampleFailure, Shard
from pipeline.table.cuts import cuts_of
from pipeline.table.label_map import encode_label_map
from pipeline.table.window_metadata import WindowMetadata, fields_of
from pipeline.worker.sample_loader import pixels_wanted

GROUP = 8  # neighbours drawn together: a jump within a tar costs more than reading on
READERS = 4  # groups read side by side
SHOWN = 600  # samples whose photos are kept for the gallery: about 60 MB of HTML
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """Statistics of the labels at one threshold, or at one cut of trees: `thresholds` are empty then.

    single: share of images with only one segment. largest: share of an image's labelled pixels in its largest segment,
    mean. Quality is left out: its mean rises where neighbouring objects are merged.
    """

    thresholds: Thresholds
    segments: float  # an image, mean
    segments_median: float
    single: float
    largest: float
    output_bytes: float  # an image
    cut: float | None = None  # height in nats

    @property
    def name(self) -> str:
        """As `--threshold` or `--cut` takes it."""
        return named(self.thresholds) if self.cut is None else f"{self.cut:g}"


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled image. rows: one a threshold or cut; a single one where it has no labels."""

    shard: str  # URL
    index: int
    rows: tuple[LabelRecord, ...]
    photo: UInt8[np.ndarray, "H W 3"] | None = None


@dataclass(frozen=True, slots=True)
class Pilot:
    """The result of a pilot. statuses: images by status; unread: why shards or parts of them were left out."""

    counts: Counts
    input_bytes: int
    samples: tuple[Sampled, ...]
    statuses: dict[str, int]
    rates: Rates
    at: tuple[AtThreshold, ...]
    unread: tuple[str, ...]

    @property
    def compared(self) -> str:
        """What of labels it compares."""
        return "threshold" if self.at[0].cut is None else "cut"


def pilot(
    shards: Sequence[Shard],
    model: Model,
    thresholds: Sequence[Thresholds],
    *,
    samples: int,
    seed: int,
    decode_threads: int,
    batch_size: int | None = None,
    image_key: str | None = None,
    tick: Callable[[int], None] = lambda labelled: None,
) -> Pilot:
    """Label `samples` images of all shards at every threshold, or without one once, with trees that are cut at levels.

    tick: called after every batch, with the images done.

    Raises ConfigError where none of them could be labelled, StorageError.
    """
    counts = count(shards, image_key)
    groups = draw(counts.samples, GROUP, samples, seed)
    timed = Timed(model)
    comparing = Comparing(DiffSeg(timed, batch_size), thresholds)
    source = _Source(shards, groups, image_key, pixels_wanted(model.config))
    labelled = Labelling(timed, comparing, photo_every=-(-samples // SHOWN))
    for shard, sample in islice(source.decoded(2 * comparing.batch_size + 2, decode_threads), samples):
        labelled.take(shard, sample)
        tick(labelled.images)
    labelled.flush()
    heights = () if thresholds else heights_around(model.config.cut or 0.0)
    rows = [
        _at_heights(of_sample[0], heights, model.config.split_components) if heights else of_sample
        for _, of_sample in sorted(labelled.rows.items())
    ]
    compared: list[tuple[Thresholds, float | None]] = [(each, None) for each in thresholds]
    compared += [((), height) for height in heights]
    statuses = Counter(of_sample[0].status for of_sample in rows)
    if not statuses[OK]:
        reason = next((of_sample[0].error for of_sample in rows), None) or next(
            iter(source.unread.values()), "the shards hold none"
        )
        raise ConfigError(f"none of {len(rows)} images could be labelled, for example: {reason}")
    found = tuple(
        Sampled(shard, index, of_sample, labelled.photos.get(place))
        for place, ((shard, index), of_sample) in enumerate(zip(labelled.sources, rows, strict=True))
    )
    return Pilot(
        counts,
        sum(shard.size for shard in shards),
        found,
        dict(statuses),
        labelled.rates(source.read_s, source.decode_s, decode_threads, shared_core=model.device.type == "cpu"),
        tuple(
            _at(*each, [of_sample[min(n, len(of_sample) - 1)] for of_sample in rows]) for n, each in enumerate(compared)
        ),
        tuple(source.unread.values()),
    )


class _Source:
    """The drawn samples, read and decoded in advance. unread: why some are missing, by the shard's URL."""

    def __init__(
        self, shards: Sequence[Shard], groups: Mapping[str, set[int]], image_key: str | None, least: int | None
    ) -> None:
        self._shards, self._groups, self._image_key, self._least = shards, groups, image_key, least
        self.unread: dict[str, str] = {}
        self.read_s: list[float] = []  # of single samples, without the first of a group
        self.decode_s: list[float] = []

    def decoded(self, depth: int, threads: int) -> Iterator[tuple[Shard, ImageSample | SampleFailure]]:
        """The samples with their images decoded, in order of shard and index."""
        return prefetch_map(self._decode, self._raw(), depth=depth, threads=threads)

    def _decode(self, drawn: tuple[Shard, RawSample]) -> tuple[Shard, ImageSample | SampleFailure]:
        shard, raw = drawn
        began = perf_counter()
        sample = decode_sample(raw, shard.reader, self._least)
        self.decode_s.append(perf_counter() - began)
        return shard, sample

    def _raw(self) -> Iterator[tuple[Shard, RawSample]]:
        groups = [(shard, group) for shard in self._shards for group in sorted(self._groups.get(shard.id, ()))]
        for shard, raws in prefetch_map(self._read, groups, depth=READERS, threads=READERS):
            yield from ((shard, raw) for raw in raws)

    def _read(self, group: tuple[Shard, int]) -> tuple[Shard, list[RawSample]]:
        shard, number = group
        first, raws = number * GROUP, list[RawSample]()
        began = perf_counter()
        try:
            for raw in read_shard(shard, first=first, image_key=self._image_key, whole=False):
                if raw.index < first:
                    continue
                self.read_s += [perf_counter() - began] if raws else []
                raws.append(raw)
                if len(raws) == GROUP:
                    break
                began = perf_counter()
        except PipelineError as error:
            logger.warning("%s is left out: %s", shard.url, error, exc_info=None if error.expected else error)
            reason = str(error)
            self.unread.setdefault(shard.url, reason if shard.url in reason else f"{shard.url}: {reason}")
        return shard, raws


def _at_heights(row: LabelRecord, heights: Sequence[float], split: bool) -> tuple[LabelRecord, ...]:
    """The row as a run labelled at each of these heights would have it."""
    if row.status != OK:
        return (row,)
    return tuple(
        replace(row, label_map=encode_label_map(found.label_map), segments=found.segments, quality=found.quality)
        for found in cuts_of(fields_of(row), [Cut(height=height) for height in heights], split=split)
    )


def _at(thresholds: Thresholds, cut: float | None, rows: Sequence[LabelRecord]) -> AtThreshold:
    segments = [row.num_segments for row in rows if row.num_segments is not None]
    areas_of_images = [[segment.area for segment in row.segments] for row in rows if row.segments]
    return AtThreshold(
        thresholds=thresholds,
        segments=fmean(segments),
        segments_median=median(segments),
        single=sum(count == 1 for count in segments) / len(segments),
        largest=fmean(max(areas) / sum(areas) for areas in areas_of_images),
        output_bytes=len(_as_window(rows)) / len(rows),
        cut=cut,
    )


def _as_window(rows: Sequence[LabelRecord]) -> bytes:
    """The bytes of these rows as a run stores them."""
    nothing: Any = dict.fromkeys(("fingerprint", "url", "etag", "attempt", "digest", "model"), "")
    nothing |= dict.fromkeys(("size", "window", "first_index"), 0)
    metadata = WindowMetadata(shard=PILOT.id, rows=len(rows), failed={}, revision=None, made_with={}, **nothing)
    return table.encode_window(rows, metadata)
