"""Selected rows of a run as labelled samples: label map at source size, segments, and the photo.

Rows come in the order of (shard, index); every shard is read through once, for its photos. Instances: what of a
segment counts as one object.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from scipy import ndimage

from diffseg.cut import Cut, box_of, components, renumbered
from diffseg.draw import resize_labels
from diffseg.ridges import split
from diffseg.types import IGNORE, Int, Segment
from pipeline.concurrency import prefetch_map
from pipeline.datasets.selection import WANTED, Part, RowCounts, Selection, chosen_rows
from pipeline.datasets.source_images import SourceImages
from pipeline.derived.corrections import CORRECTED
from pipeline.errors import ConfigError, ShardChanged
from pipeline.inputs.decode import extension_of
from pipeline.inputs.kinds import IMAGE_EXTENSIONS
from pipeline.records import CHANGED, RawSample
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import Names, generated_name
from pipeline.table import segments_in
from pipeline.table.label_map import decode_label_map
from pipeline.table.leaf_map import decode_leaf_map

SEGMENTS, COMPONENTS, RIDGES = "segments", "components", "ridges"
KINDS = (SEGMENTS, COMPONENTS, RIDGES)
NEEDED = ("leaf_map", "ridges")  # columns of uncut rows that RIDGES are made from
Instances = tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " I"]]  # the instance of each pixel, the segment of each
logger = logging.getLogger(__name__)
KEPT = 8  # windows whose rows a process keeps: about 3 MB each
AHEAD = 8  # samples prepared ahead: each may hold a photo and a label map of its size


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """A sample as formats write it.

    number: from 1, its row's position among all rows of the run, selected or not. name: of its files, without
    extension. side: `train` or `val`. label_map: at the size of the photo; ids as in the run, IGNORE where a segment
    was not wanted. segments: of that label map. instances: of those. raw: the sample as it lies in its shard; None
    where no photos are wanted.
    """

    number: int
    name: str
    side: str
    row: Mapping[str, Any]
    label_map: Int[np.ndarray, "H W"]
    segments: tuple[Segment, ...]
    instances: Instances
    raw: RawSample | None

    @property
    def photo(self) -> bytes | None:
        """The encoded image as it was found."""
        return self.raw.members[self.raw.image] if self.raw and self.raw.image else None

    @property
    def extension(self) -> str:
        """Of the photo; `jpg` where photos are not read."""
        if self.raw is None or self.raw.image is None:
            return "jpg"
        extension = self.raw.image.rpartition(".")[2]
        return extension if extension in IMAGE_EXTENSIONS else extension_of(self.raw.members[self.raw.image])


class Samples:
    """The wanted samples of a part of a run."""

    def __init__(
        self,
        ledger: Ledger,
        selection: Selection,
        names: Names,
        photos: SourceImages | None,
        cut_of: Callable[[Mapping[str, Any]], Cut | None] = lambda row: None,
        instances: str = SEGMENTS,
    ) -> None:
        """photos: where they come from; None: they are not read. cut_of: the cut of a row; None: the ledger's.

        instances: their kind.
        """
        self.ledger, self.selection, self.names, self.photos = ledger, selection, names, photos
        self.cut_of, self.instances = cut_of, instances
        self.rows_of = lru_cache(KEPT)(self._rows_of)

    def _rows_of(self, window: WindowObject) -> dict[int, dict[str, Any]]:
        """Uncut rows by index; those of the last few windows are kept."""
        return {row["index"]: row for row in self.ledger.rows(WANTED, windows=[window], uncut=True)}

    def of(self, part: Part, tally: RowCounts) -> Iterator[LabelledSample]:
        """The samples of a part, until its limit is reached; counted as they come."""
        wanted = WANTED + NEEDED * (self.instances == RIDGES)
        rows = chosen_rows(self.ledger, self.selection, part, tally, wanted)
        chosen = (
            self._with_photos(part, rows, self.photos, tally) if self.photos else ((*found, None) for found in rows)
        )
        yield from prefetch_map(lambda found: self.labelled(*found), chosen, depth=AHEAD, threads=2)

    def _with_photos(
        self, part: Part, rows: Iterator[tuple[int, dict[str, Any]]], photos: SourceImages, tally: RowCounts
    ) -> Iterator[tuple[int, dict[str, Any], RawSample]]:
        """Rows with their samples, from objects that are read through in order."""
        windows = {(window.shard, window.window): window for window in part.windows}
        opened, source = "", cast(Iterator[RawSample], iter(()))
        for number, row in rows:
            window = windows[row["shard"], row["index"] // self.ledger.run.window]
            if (name := photos.object_of(window)) != opened:
                source, opened = photos.through(window, row["index"]), name
            found = next((raw for raw in source if raw.index == row["index"]), None)
            raw = checked(found, row, self.ledger)
            if raw.is_other_than(row["image_sha256"]):
                tally.images -= 1
                tally.leave_out(f"{CHANGED}: {self.ledger.shards[row['shard']].url}")
                logger.warning("%s %d (%r): %s", row["shard"], row["index"], row["key"], CHANGED)
                continue
            yield number, row, raw

    def labelled(self, number: int, row: dict[str, Any], raw: RawSample | None) -> LabelledSample:
        """An uncut row of WANTED columns, and its image, as formats write it."""
        stored, row = row, dict(self.ledger.at_cut(row, self.cut_of(row)))
        own = decode_label_map(row.pop("label_map"))
        label_map = resize_labels(own, (row["height"], row["width"]))
        recorded, _ = segments_in(row), row.pop("segments")
        segments = self._kept(label_map, recorded)
        if len(segments) < len(recorded):
            ids = np.arange(len(recorded))
            label_map = renumbered(label_map, np.where(np.isin(ids, [each.id for each in segments]), ids, IGNORE))
        name = self.names.of(row["key"], row["shard"], row["index"])
        instances = instances_of(self.instances, label_map, stored, own, CORRECTED in row)
        return LabelledSample(number, name, self.selection.side(row["key"]), row, label_map, segments, instances, raw)

    def _kept(self, label_map: Int[np.ndarray, "H W"], recorded: Sequence[Segment]) -> tuple[Segment, ...]:
        """The wanted segments, measured at source size."""
        smallest = max(1.0, self.selection.min_area * label_map.size)
        areas = np.bincount(label_map[label_map != IGNORE], minlength=len(recorded))
        boxes = ndimage.find_objects(label_map + 1, max_label=len(areas))
        return tuple(
            replace(segment, area=int(areas[segment.id]), box=box_of(boxes[segment.id]))
            for segment in recorded
            if areas[segment.id] >= smallest and segment.score >= self.selection.min_score
        )


def checked(raw: RawSample | None, row: Mapping[str, Any], ledger: Ledger) -> RawSample:
    """Check that a sample is that of a row; in the run's own tars its key may be a generated name.

    Raises ShardChanged.
    """
    names = (row["key"], generated_name(row["key"], row["shard"], row["index"]))
    if raw is None or raw.key not in names or raw.image is None:
        url = ledger.shards[row["shard"]].url
        raise ShardChanged(f"{url}: sample {row['index']} is not {row['key']!r} as it was when labelled")
    return raw


def check_instances(ledger: Ledger, kind: str) -> None:
    """Raises ConfigError for an unknown kind, and for ridges of a run that was labelled without them."""
    if kind not in KINDS:
        raise ConfigError(f"--instances {kind!r}: possible are {', '.join(KINDS)}")
    if kind == RIDGES and not ledger.run.segment.ridges:
        raise ConfigError(f"--instances {RIDGES}: {ledger} was labelled without them (`diffseg label --ridges`)")


def instances_of(
    kind: str,
    label_map: Int[np.ndarray, "H W"],
    stored: Mapping[str, Any],
    own: Int[np.ndarray, "h w"],
    corrected: bool = False,
) -> Instances:
    """The instances of an image; those of a segment are numbered one after the other, or by their first leaves.

    label_map: the wanted segments at any size, of which `own` is that of the row. stored: the uncut row, with NEEDED
    columns where these are ridges. corrected: by people, so that ridges, which are of leaves, are components. Raises
    ConfigError where its ridges are damaged.
    """
    if kind == SEGMENTS:
        return label_map, np.arange(int(label_map.max(initial=-1)) + 1)
    if kind == COMPONENTS or corrected:
        return components(label_map)
    try:
        parts = split(own, decode_leaf_map(stored["leaf_map"]), np.frombuffer(stored["ridges"], np.uint8))
    except (ValueError, TypeError, OSError, SyntaxError) as error:  # TypeError: null; the last two are Pillow's
        where = f"{stored['shard']}, sample {stored['index']}"
        raise ConfigError(f"{where}: no usable ridges: {error}; `diffseg verify --full` finds damage") from error
    regions = np.where(label_map == IGNORE, IGNORE, resize_labels(parts, label_map.shape))
    numbers, first, instance = np.unique(regions, return_index=True, return_inverse=True)
    void = int(numbers[0] == IGNORE)
    return instance.reshape(regions.shape) - void, label_map.ravel()[first[void:]]
