"""Preview: samples of a run chosen for the gallery, with everything it shows of them.

The worst, the best, random and failed samples are chosen in one pass over the small columns; then label maps and photos
of the chosen are read. Statistics are of all rows read, not of the chosen ones.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from diffseg.cut import Cut
from pipeline.concurrency import prefetch_map
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError, PipelineError
from pipeline.gallery.exemplars import Identity, Top, exemplars
from pipeline.gallery.html_page import GalleryItem, GalleryMap, GalleryPage, write_gallery
from pipeline.gallery.statistics import Distributions, some_windows
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.records import CHANGED, OK, ImageSample, RawSample
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table import segments_in
from pipeline.table.cuts import cuts_of
from pipeline.table.label_map import decode_label_map

STEPS = (-3, -2, -1, 0, 1, 2, 3)  # thirds of a factor of 3: from a third of a run's own height to three times it
OWN = STEPS.index(0)
FAILURES = 200  # failed samples listed at most
_SMALL = ("key", "shard", "index", "status", "quality", "segments")
_LARGE = (*_SMALL, "image_sha256", "error", "width", "height", "label_map")
_NO_PHOTO: tuple[int, np.ndarray | None] = (-1, None)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The samples to show. drawn: those of them chosen at random. exemplars: the categories they are examples of."""

    shown: frozenset[Identity]
    drawn: frozenset[Identity]
    exemplars: Mapping[Identity, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a gallery: samples in it, samples of the run, and why photos are missing where some are."""

    items: int
    samples: int
    without_photo: tuple[str, ...]


def choose(rows: Iterator[dict[str, Any]], counts: Distributions, samples: int, seed: int) -> Choice:
    """Choose a third worst, a third best, the rest at random; all of them where they are no more than `samples`.

    Up to FAILURES rows without labels are added. Every row is added to `counts`. Equal rows and seed choose alike.
    """
    rng = random.Random(seed)
    worst, best = Top[Identity](samples // 3), Top[Identity](samples // 3)
    drawn, failed = Top[Identity](samples), Top[Identity](FAILURES)
    for row in rows:
        counts.add(row)
        identity = (row["shard"], row["index"])
        priority = rng.random()
        if row["status"] != OK:
            failed.add(priority, identity)
            continue
        drawn.add(priority, identity)
        if row["quality"] is not None:
            worst.add(-row["quality"], identity)
            best.add(row["quality"], identity)
    shown = {*worst.values(), *best.values()}
    at_random = set[Identity]()
    for identity in drawn.values():  # in random order: an unbiased draw, whether a sample is extreme or not
        if len(shown | {identity}) > samples:
            break
        shown.add(identity)
        at_random.add(identity)
    return Choice(frozenset({*shown, *failed.values()}), frozenset(at_random))


def write_page(
    ledger: Ledger,
    out: BinaryIO,
    *,
    samples: int,
    seed: int,
    title: str | None = None,
    selection: Selection = Selection(),  # noqa: B008 - it is frozen
) -> Shown:
    """Write the gallery of a run, finished or not. selection: of these rows, and with a filter those without labels.

    Raises ConfigError where nothing is committed yet or the filter cannot be read, StorageError.
    """
    selection.check(ledger)
    read, share = some_windows(ledger, seed)
    counts, where = Distributions(), selection.where
    rows = ledger.rows(_SMALL, windows=read, filter=selection.condition)
    choice = choose(filter(selection.wants, rows), counts, samples, seed)
    if selection.among is None and (found := exemplars(ledger, read, samples, selection.condition)):
        choice = replace(choice, shown=choice.shown | found.keys(), exemplars=found)
    if not counts.samples:
        raise ConfigError(
            f"{ledger}: nothing is committed yet, so there is nothing to show"
            if where is None
            else f"{ledger}: no row with {where}"
        )
    lost: list[str] = []
    page = _page(ledger, counts, len(choice.shown), share, title, where)
    shown = write_gallery(out, _items(ledger, read, choice, lost), page)
    return Shown(shown, counts.samples, tuple(lost))


def _page(
    ledger: Ledger, counts: Distributions, shown: int, share: float, title: str | None, where: str | None
) -> GalleryPage:
    run, segments, quality = ledger.run, counts.mean_segments, counts.mean_quality
    facts = {
        "samples": f"{counts.samples:,}",
        "shown": f"{shown:,}",
        "model": run.model,
        "mode": run.segment.mode,
        "where": where,
        "scores": ledger.calibration and f"IoU predicted by {ledger.calibration}",
        "categories": ledger.categories,
        "corrected by people": ledger.corrections,
        "cut": ledger.cut and str(ledger.cut),
        "segments an image": None if segments is None else f"{segments:.1f}",
        "quality": None if quality is None else f"{quality:.3f}",
        "state": "unfinished" if ledger.missing() else None,
        "read": f"{share:.1%} of the run, at random" if share < 1 else None,
    }
    return GalleryPage(
        title=title or f"Labels of {PurePosixPath(str(ledger)).name}",
        facts=tuple((name, text) for name, text in facts.items() if text),
        statuses=counts.by_status(),
        histograms=counts.histograms(),
        level=OWN if _heights(ledger) else None,
    )


def _items(ledger: Ledger, windows: Sequence[WindowObject], choice: Choice, lost: list[str]) -> Iterator[GalleryItem]:
    """The chosen samples in order of shard and index. lost: gains a line for windows without photos."""
    wanted: dict[tuple[str, int], set[int]] = defaultdict(set)
    for shard, index in choice.shown:
        wanted[shard, index // ledger.run.window].add(index)
    columns = (*_LARGE, "leaf_map", "tree") if _heights(ledger) else _LARGE
    for window in windows:
        if indices := wanted.get((window.shard, window.window)):
            found = ledger.rows(columns, windows=[window], uncut=True)
            rows = [row for row in found if row["index"] in indices]
            photos = photos_of(
                ledger, window.shard, {row["index"]: row["image_sha256"] for row in rows if row["status"] == OK}, lost
            )
            for row, photo in _pair(rows, photos):
                yield _item(ledger, row, photo, choice)


def _pair(
    rows: Sequence[dict[str, Any]], photos: Iterator[tuple[int, np.ndarray]]
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Each row with its photo, None where there is none; both come in order of index."""
    index, pixels = next(photos, _NO_PHOTO)
    for row in rows:
        found = index == row["index"]
        yield row, pixels if found else None
        if found:
            index, pixels = next(photos, _NO_PHOTO)


def photos_of(
    ledger: Ledger, shard: str, indices: Mapping[int, str | None], lost: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and pixels of the photos that can still be read, in order."""
    if not indices:
        return
    try:
        raw = _raw_samples(ledger, shard, indices)
        for sample in prefetch_map(partial(decode_sample, reader=ledger.run.reader), raw, depth=2):
            if isinstance(sample, ImageSample) and indices[sample.raw.index] not in (None, sample.sha256):
                lost.append(f"{ledger.shards[shard].url}: sample {sample.raw.index} is {CHANGED}")
            elif isinstance(sample, ImageSample):
                yield sample.raw.index, sample.image
    except PipelineError as error:
        logger.warning("photos of %s are left out: %s", shard, error, exc_info=None if error.expected else error)
        lost.append(str(error))


def _raw_samples(ledger: Ledger, shard: str, indices: Collection[int]) -> Iterator[RawSample]:
    for sample in read_shard(ledger.shards[shard], first=min(indices), image_key=ledger.run.image_key):
        if sample.index in indices:
            yield sample
        if sample.index >= max(indices):
            return


def _heights(ledger: Ledger) -> tuple[float, ...]:
    """Of the levels that are shown: none where one cut is asked for, or values that are known of one cut alone."""
    alone = ledger.cut or ledger.calibration or ledger.categories or ledger.corrections or not ledger.run.segment.tree
    return () if alone else heights_around(ledger.run.segment.cut or 0.0)


def heights_around(own: float) -> tuple[float, ...]:
    """The heights of all levels in nats, the one at OWN as it is."""
    return tuple(float(f"{own * 3 ** (step / 3):.3g}") if step else own for step in STEPS)


def at_heights(row: Mapping[str, Any], heights: Sequence[float], *, split: bool) -> tuple[GalleryMap, ...]:
    """The label maps of a row with leaf map and tree. Raises what `cuts_of` does."""
    cuts = [Cut(height=height) for height in heights]
    return tuple(
        GalleryMap(found.label_map, found.segments, found.quality, f"cut {cut.height:g}")
        for cut, found in zip(cuts, cuts_of(row, cuts, split=split), strict=True)
    )


def _item(ledger: Ledger, row: dict[str, Any], photo: np.ndarray | None, choice: Choice) -> GalleryItem:
    identity = (row["shard"], row["index"])
    maps: tuple[GalleryMap, ...] = ()
    if row["status"] == OK and (heights := _heights(ledger)):
        maps = at_heights(row, heights, split=ledger.run.segment.split_components)
    elif row["status"] == OK:
        made = ledger.at_cut(row)
        maps = (GalleryMap(decode_label_map(made["label_map"]), segments_in(made), made["quality"]),)
    return GalleryItem(
        key=row["key"],
        shard=ledger.shards[row["shard"]].url,
        index=row["index"],
        status=row["status"],
        error=row["error"],
        size=(row["width"], row["height"]) if row["width"] else None,
        image=photo,
        maps=maps,
        random=identity in choice.drawn,
        exemplar=tuple(choice.exemplars.get(identity, ())),
    )
