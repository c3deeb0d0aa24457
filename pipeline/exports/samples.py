"""Rows of a run that an export wants, as labelled samples: label map at source size, segments, and the photo.

Rows come in the order of (shard, index); every shard is read through once, for its photos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from scipy import ndimage

from diffseg.draw import resize_labels
from diffseg.types import IGNORE, Int, Segment
from pipeline.concurrency import map_ahead
from pipeline.errors import ConfigError, ShardChanged
from pipeline.images import decode_label_map, extension_of
from pipeline.kinds import IMAGE_EXTENSIONS
from pipeline.ledger import Ledger
from pipeline.names import Names, made_name, share
from pipeline.photos import Photos
from pipeline.records import OK, RawSample
from pipeline.where import COLUMNS, Column, Comparison, Condition, Constant, Some, parse_where
from pipeline.windows import WindowObject

AHEAD = 8  # samples ready before they are written: each may hold a photo and a label map of its size
TRAIN, VAL = "train", "val"
NOT_ASKED = "not asked for"
WANTED = (*COLUMNS, "label_map", "segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows and segments are wanted. Raises ConfigError for values that make no sense."""

    where: str | None = None  # see pipeline.where
    min_area: float = 0.0  # of the image, in [0, 1)
    min_score: float = 0.0  # in [0, 1]
    limit: int | None = None  # samples
    split: float | None = None  # share of the keys that go to `train`; the others go to `val`

    def __post_init__(self) -> None:
        if not 0 <= self.min_area < 1:
            raise ConfigError(f"--min-area is a share of the image in [0, 1), got {self.min_area}")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"--min-score lies in [0, 1], got {self.min_score}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is a number of images, at least 1, got {self.limit}")
        if self.split is not None and not 0 < self.split < 1:
            raise ConfigError(f"--split is the share of `train`, between 0 and 1, got {self.split}")
        if self.where is not None:
            parse_where(self.where)

    @property
    def condition(self) -> Condition | None:
        """What rows are read by: those that are asked for, and those without labels, which are to be counted."""
        if self.where is None:
            return None
        return Some((Comparison("!=", Column("status"), Constant(OK)), parse_where(self.where)))

    def side(self, key: str) -> str:
        """`train` or `val`, by the key alone: stable over runs, exports and machines."""
        return TRAIN if self.split is None or share(key) < self.split else VAL


@dataclass(slots=True)
class Tally:
    """How far an export is. rows: looked at; images: taken; left_out: rows by reason."""

    rows: int = 0
    images: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, rows: int = 1) -> None:
        """Count rows that are not taken."""
        if rows:
            self.left_out[reason] = self.left_out.get(reason, 0) + rows

    def add(self, other: "Tally") -> None:
        """Count what another has counted."""
        self.rows, self.images = self.rows + other.rows, self.images + other.images
        for reason, rows in other.left_out.items():
            self.leave_out(reason, rows)


@dataclass(frozen=True, slots=True)
class Part:
    """Whole windows that become objects of their own.

    starts: for each window, the rows of the run before it. rows: of all of them. limit: images at most; None: all.
    """

    number: int
    windows: tuple[WindowObject, ...]
    starts: tuple[int, ...]
    rows: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample as formats write it.

    number: from 1, the place of its row among all rows of the run, whatever was selected. name: of its files, without
    extension. side: `train` or `val`. label_map: at the size of the photo; ids as in the run, IGNORE where a segment
    was not wanted. segments: of that label map. raw: the sample as it lies in its shard; None where no photos are
    wanted.
    """

    number: int
    name: str
    side: str
    row: Mapping[str, Any]
    label_map: Int[np.ndarray, "H W"]
    segments: tuple[Segment, ...]
    raw: RawSample | None

    @property
    def photo(self) -> bytes | None:
        """The encoded image as it was found."""
        return self.raw.members[self.raw.image] if self.raw and self.raw.image else None

    @property
    def extension(self) -> str:
        """Of the photo; `jpg` where photos are not read and so nobody knows."""
        if self.raw is None or self.raw.image is None:
            return "jpg"
        extension = self.raw.image.rpartition(".")[2]
        return extension if extension in IMAGE_EXTENSIONS else extension_of(self.raw.members[self.raw.image])


def chosen_rows(
    ledger: Ledger, selection: Selection, part: Part, tally: Tally, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted rows of a part, each with its number in the run from 1 on; counted as they come."""
    window = ledger.run.window
    starts = {(at.shard, at.window): start for at, start in zip(part.windows, part.starts, strict=True)}
    seen = part.starts[0]
    wanted = list({*columns, "key", "shard", "index", "status"})
    for row in ledger.rows(wanted, windows=part.windows, where=selection.condition):
        place, within = divmod(row["index"], window)
        number = starts[row["shard"], place] + within + 1
        tally.leave_out(NOT_ASKED, number - seen - 1)
        tally.rows, seen = tally.rows + number - seen, number
        if row["status"] != OK:
            tally.leave_out(f"without labels: {row['status']}")
            continue
        tally.images += 1
        yield number, row
        if tally.images == part.limit:
            return
    rest = part.starts[0] + part.rows - seen
    tally.leave_out(NOT_ASKED, rest)
    tally.rows += rest


class Samples:
    """The wanted samples of a part of a run."""

    def __init__(self, ledger: Ledger, selection: Selection, names: Names, photos: Photos | None) -> None:
        """photos: where they come from; None: they are not read."""
        self.ledger, self.selection, self.names, self.photos = ledger, selection, names, photos

    def of(self, part: Part, tally: Tally) -> Iterator[Labelled]:
        """The samples of a part, until its limit is reached; counted as they come."""
        rows = chosen_rows(self.ledger, self.selection, part, tally, WANTED)
        chosen = self._with_photos(part, rows, self.photos) if self.photos else ((*found, None) for found in rows)
        yield from map_ahead(lambda found: self.labelled(*found), chosen, depth=AHEAD, threads=2)

    def _with_photos(
        self, part: Part, rows: Iterator[tuple[int, dict[str, Any]]], photos: Photos
    ) -> Iterator[tuple[int, dict[str, Any], RawSample]]:
        """Rows with their samples, from objects that are read through in order."""
        windows = {(window.shard, window.window): window for window in part.windows}
        opened, source = "", cast(Iterator[RawSample], iter(()))
        for number, row in rows:
            window = windows[row["shard"], row["index"] // self.ledger.run.window]
            if (name := photos.object_of(window)) != opened:
                source, opened = photos.through(window, row["index"]), name
            found = next((raw for raw in source if raw.index == row["index"]), None)
            yield number, row, proved(found, row, self.ledger)

    def labelled(self, number: int, row: dict[str, Any], raw: RawSample | None) -> Labelled:
        """A row of WANTED columns, and its image, as formats write it."""
        label_map = resize_labels(decode_label_map(row.pop("label_map")), (row["height"], row["width"]))
        said = tuple(Segment(**{**segment, "box": tuple(segment["box"])}) for segment in row.pop("segments"))
        segments = self._kept(label_map, said)
        if len(segments) < len(said):
            label_map = _without_others(label_map, segments)
        name = self.names.of(row["key"], row["shard"], row["index"])
        return Labelled(number, name, self.selection.side(row["key"]), row, label_map, segments, raw)

    def _kept(self, label_map: Int[np.ndarray, "H W"], said: Sequence[Segment]) -> tuple[Segment, ...]:
        """The wanted segments, measured at source size."""
        smallest = max(1.0, self.selection.min_area * label_map.size)
        areas = np.bincount(label_map[label_map != IGNORE], minlength=len(said))
        boxes = ndimage.find_objects(label_map + 1, max_label=len(areas))
        return tuple(
            replace(segment, area=int(areas[segment.id]), box=box_of(boxes[segment.id]))
            for segment in said
            if areas[segment.id] >= smallest and segment.score >= self.selection.min_score
        )


def proved(raw: RawSample | None, row: Mapping[str, Any], ledger: Ledger) -> RawSample:
    """The sample, if it is the one that a row speaks of; one of the run's own tars may have a made name there.

    Raises ShardChanged.
    """
    mine = raw is not None and (raw.key == row["key"] or raw.key == made_name(row["key"], row["shard"], row["index"]))
    if raw is None or not mine or raw.image is None:
        url = ledger.shards[row["shard"]].url
        raise ShardChanged(f"{url}: sample {row['index']} is not {row['key']!r} as it was when labelled")
    return raw


def box_of(place: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """x, y, width, height of a pair of slices, as COCO has it."""
    rows, columns = place
    return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start


def _without_others(label_map: Int[np.ndarray, "H W"], kept: Sequence[Segment]) -> Int[np.ndarray, "H W"]:
    """Only the kept ids; every other pixel belongs to nobody."""
    table_ = np.full(int(label_map.max()) + 2, IGNORE, np.int32)  # the last one answers for IGNORE itself
    for segment in kept:
        table_[segment.id] = segment.id
    return table_[label_map]
