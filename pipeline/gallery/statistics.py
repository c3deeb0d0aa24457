"""Statistics of a run: samples by status, segments per image, areas, quality, and bytes on storage.

Rows of at most WINDOWS windows are read: of a larger run a random share is enough, and takes minutes.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.records import OK
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger

WINDOWS = 1000  # about a million images
COLUMNS = ("status", "quality", "segments")  # that are counted
_AREA_EDGES = tuple(10.0 ** (power / 3 - 4) for power in range(13))  # 0.01 % to all of the image, three bins a decade
_QUALITY_EDGES = tuple(step / 20 for step in range(21))
_SEGMENT_BINS = 30  # at most; wider bins beyond as many segments


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges.

    ticks: labels of the edges, every `every`-th is written under the axis. filter: the field that a bin filters by.
    """

    title: str
    note: str
    edges: tuple[float, ...]
    ticks: tuple[str, ...]
    counts: tuple[int, ...]
    every: int = 1
    filter: str | None = None


class Distributions:
    """Distributions of rows, counted as they come in constant memory."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()  # of segments that have one
        self._segments: Counter[int] = Counter()
        self._areas = np.zeros(len(_AREA_EDGES) - 1, np.int64)
        self._quality = np.zeros(len(_QUALITY_EDGES) - 1, np.int64)
        self._quality_sum = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """A row with status, quality and segments, a list of {area, ...}."""
        self.statuses[row["status"]] += 1
        if row["status"] != OK:
            return
        areas = np.array([segment["area"] for segment in row["segments"] or ()], np.float64)
        self._segments[len(areas)] += 1
        self.categories.update(each["category"] for each in row["segments"] or () if each.get("category"))
        shares = areas / max(1.0, areas.sum())
        self._areas += np.histogram(shares.clip(_AREA_EDGES[0], _AREA_EDGES[-1]), _AREA_EDGES)[0]
        if row["quality"] is not None:
            self._quality += np.histogram([row["quality"]], _QUALITY_EDGES)[0]
            self._quality_sum += row["quality"]

    @property
    def samples(self) -> int:
        """Rows so far."""
        return self.statuses.total()

    @property
    def mean_segments(self) -> float | None:
        """Segments an image; None before the first."""
        images = self._segments.total()
        return sum(count * images for count, images in self._segments.items()) / images if images else None

    @property
    def mean_quality(self) -> float | None:
        """None before the first image with a quality."""
        images = int(self._quality.sum())
        return self._quality_sum / images if images else None

    def by_status(self) -> tuple[tuple[str, int], ...]:
        """Samples by status, ok first, then the commonest reasons."""
        return tuple(sorted(self.statuses.items(), key=lambda pair: (pair[0] != OK, -pair[1], pair[0])))

    def histograms(self) -> tuple[Histogram, ...]:
        """Quality, segments an image, areas."""
        return (
            Histogram(
                "Quality",
                self._quality_note(),
                _QUALITY_EDGES,
                tuple(f"{edge:g}" for edge in _QUALITY_EDGES),
                tuple(self._quality.tolist()),
                every=4,
                filter="quality",
            ),
            self._segment_histogram(),
            Histogram(
                "Areas of segments",
                "share of the labelled pixels, logarithmic",
                _AREA_EDGES,
                tuple(f"{float(f'{100 * edge:.2g}'):g} %" for edge in _AREA_EDGES),
                tuple(self._areas.tolist()),
                every=3,
            ),
        )

    def _quality_note(self) -> str:
        images, single = self._segments.total(), self._segments[1]
        if not images or not single:
            return _mean("mean", self.mean_quality, 3)
        mean = "" if self.mean_quality is None else f"{_mean('mean', self.mean_quality, 3)}; "
        return f"{mean}{single / images:.0%} of the images are one segment, which has none"

    def _segment_histogram(self) -> Histogram:
        most = max(self._segments, default=0)
        width = -(-(most + 1) // _SEGMENT_BINS)
        counts = [0] * (most // width + 1)
        for segments, images in self._segments.items():
            counts[segments // width] += images
        edges = tuple(range(0, (len(counts) + 1) * width, width))
        note = _mean("mean", self.mean_segments, 1)
        every = -(-len(edges) // 8)
        return Histogram("Segments an image", note, edges, tuple(map(str, edges)), tuple(counts), every, "segments")


def _mean(name: str, value: float | None, digits: int) -> str:
    return "no labelled image" if value is None else f"{name} {value:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Holding:
    """Objects and bytes of a folder of a run."""

    objects: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Detail:
    """Distributions of a run. share: of the windows, that were read; storage: by folder."""

    counts: Distributions
    share: float
    storage: dict[str, Holding]


def detail(ledger: Ledger, *, seed: int = 0) -> Detail:
    """Count what is committed. seed: decides which windows are read of a run that has more than WINDOWS."""
    windows, share = some_windows(ledger, seed)
    counts = Distributions()
    for row in ledger.rows(COLUMNS, windows=windows):
        counts.add(row)
    return Detail(counts, share, holdings(ledger))


def some_windows(ledger: Ledger, seed: int) -> tuple[list[WindowObject], float]:
    """At most WINDOWS random windows in their order, and their share of all windows."""
    windows = list(ledger.windows())
    drawn = sorted(random.Random(seed).sample(range(len(windows)), min(WINDOWS, len(windows))))
    return [windows[number] for number in drawn], len(drawn) / max(1, len(windows))


def holdings(ledger: Ledger) -> dict[str, Holding]:
    """Objects and bytes of each folder of a run, from one listing; `.` is the run's own folder."""
    found: dict[str, Holding] = {}
    for name, size in ledger.store.list(""):
        folder = name.partition("/")[0] if "/" in name else "."
        before = found.get(folder, Holding(0, 0))
        found[folder] = Holding(before.objects + 1, before.size + size)
    return dict(sorted(found.items()))
