"""A run as torch datasets: photos with their label maps, from local disk or object storage, without an export.

Pixels come from the source shards, or with `photos="webdataset"` from the tars of `label --also webdataset`. Workers
of a DataLoader need `multiprocessing_context="spawn"`: a fork would share connections to storage.
"""

import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from diffseg.cut import Cut
from diffseg.types import Int, Segment, UInt8
from pipeline.datasets.samples import LabelledSample, Samples, checked
from pipeline.datasets.selection import TRAIN, VAL, Part, RowCounts, Selection, chosen_rows
from pipeline.datasets.source_images import SourceImages
from pipeline.derived.joined import open_run
from pipeline.errors import ConfigError, ShardChanged
from pipeline.inputs.reader import decode_sample
from pipeline.records import CHANGED, Category, ImageSample
from pipeline.run.layout import WindowObject
from pipeline.storage.names import Names

T = TypeVar("T")

BUFFER = 256  # examples that a shuffled stream draws from, as they come out of `transform`
ENOUGH = 4  # shards per reader; with fewer, windows are distributed instead
SOURCES = ("source", "webdataset")


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled photo. label_map: at the photo's size, ids as in the run, -1 for void pixels."""

    image: UInt8[torch.Tensor, "3 H W"]
    label_map: Int[torch.Tensor, "H W"]  # int64, as losses take it
    segments: tuple[Segment, ...]
    key: str
    shard: str
    index: int


def whole(example: Example) -> Any:
    """The transform that changes nothing."""
    return example


class Options(TypedDict, total=False):
    """What is read of a run, and how: each as the flag of `diffseg export` that has its name.

    side: of a split, `train` or `val`. photos: from the `source`, or from the tars of --also `webdataset`. cut: two
    heights: every sample is cut at one between them, drawn by seed and epoch.
    """

    where: str | None
    min_area: float
    min_score: float
    split: float | None
    side: str
    photos: str
    cut: float | tuple[float, float] | None
    segments: int | None
    calibration: str | None
    categories: str | None
    corrections: str | None
    seed: int


_TABLES = Options(calibration=None, categories=None, corrections=None)
_DEFAULTS = Options(side=TRAIN, photos="source", cut=None, segments=None, seed=0, **_TABLES)
_OF_READING = frozenset(_DEFAULTS)


class _Run(Generic[T]):
    """Base of both datasets: a run that each process opens when it first reads."""

    def __init__(self, run: str, transform: Callable[[Example], T], options: Options) -> None:
        given: Options = {**_DEFAULTS, **options}
        cut, self.side, photos, self.seed = given["cut"], given["side"], given["photos"], given["seed"]
        chosen: Any = {name: value for name, value in given.items() if name not in _OF_READING}
        self.url, self.transform, self.selection = run, transform, Selection(**chosen)
        if photos not in SOURCES:
            raise ConfigError(f"photos={photos!r}: possible are {', '.join(SOURCES)}")
        if self.side not in (TRAIN, VAL):
            raise ConfigError(f"side={self.side!r}: possible are {TRAIN}, {VAL}")
        self._heights = cut if isinstance(cut, tuple) else None
        self._tables = given["calibration"], given["categories"], given["corrections"]
        self._cut = _cut(cut[0] if isinstance(cut, tuple) else cut, given["segments"])
        if self._heights and not 0 < self._heights[0] <= self._heights[1] < math.inf:
            raise ConfigError(f"cut={cut}: two heights in nats, the lower one first and above 0")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._beside = photos == "webdataset"
        self._opened: Samples | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def samples(self) -> Samples:
        """The run as this process reads it. Raises ConfigError in a fork of a process that has read remote storage."""
        if self._opened and self._process != os.getpid() and not self._opened.ledger.store.local:
            raise ConfigError(f'{self.url}: workers must begin with multiprocessing_context="spawn", not by a fork')
        if self._opened is None:
            self._process = os.getpid()
            ledger = open_run(self.url, self._cut, *self._tables)
            self.selection.check(ledger, drawn=self._heights is not None)
            photos = SourceImages(ledger, beside=self._beside, jumps=True)
            self._opened = Samples(ledger, self.selection, Names(), photos, self._drawn)
        return self._opened

    @property
    def categories(self) -> tuple[Category, ...]:
        """What segments may be, where a table of categories is read; ids from 1."""
        return self.samples.ledger.categories_table

    def set_epoch(self, epoch: int) -> None:
        """Draw other heights, and in a shuffled stream another order, equal on every rank, from the next sample on."""
        self._epoch.fill_(epoch)

    def _drawn(self, row: Mapping[str, Any]) -> Cut | None:
        """A height between the two for a row, each ratio of heights as likely as any other; None: heights are fixed."""
        if self._heights is None:
            return None
        low, high = self._heights
        share = random.Random(f"{self.seed} {int(self._epoch)} {row['shard']} {row['index']}").random()
        return Cut(height=low * (high / low) ** share)

    def example(self, labelled: LabelledSample) -> T:
        """A sample as a trainer gets it. Raises ShardChanged where it is not what was labelled."""
        assert labelled.raw is not None
        row, decoded = labelled.row, decode_sample(labelled.raw, self.samples.ledger.run.reader)
        if not isinstance(decoded, ImageSample) or decoded.image.shape[:2] != labelled.label_map.shape:
            raise ShardChanged(f"{row['shard']}: sample {row['index']} is not the {row['key']!r} that was labelled")
        image = torch.from_numpy(decoded.image.copy()).permute(2, 0, 1).contiguous()
        label_map = torch.from_numpy(labelled.label_map.astype(np.int64))
        found = Example(image, label_map, labelled.segments, row["key"], row["shard"], row["index"])
        return self.transform(found)


def _cut(height: float | None, segments: int | None) -> Cut | None:
    try:
        return None if height is None and segments is None else Cut(height=height, segments=segments)
    except ValueError as error:
        raise ConfigError(f"cut={height}, segments={segments}: {error}") from error


def _part(windows: Iterable[WindowObject], size: int) -> Part:
    chosen = tuple(windows)
    return Part(0, chosen, tuple(size * number for number in range(len(chosen))), size * len(chosen))


class RunDataset(_Run[T], Dataset[T]):
    """Map-style: any sample at any time, in order of shard and index.

    The samples are selected when it is made, from small columns: twelve bytes a sample, copied to every worker. Random
    access reads a window of rows a sample where more than KEPT are in use: for runs beyond memory use RunStream.
    """

    def __init__(self, run: str, *, transform: Callable[[Example], T] = whole, **options: Unpack[Options]) -> None:
        """Raises ConfigError for what makes no sense."""
        super().__init__(run, transform, options)
        ledger = self.samples.ledger
        self.windows = list(ledger.windows())
        numbers = {(window.shard, window.window): number for number, window in enumerate(self.windows)}
        owners, indices, size = list[int](), list[int](), ledger.run.window
        for _, row in (
            chosen_rows(ledger, self.selection, _part(self.windows, size), RowCounts(), ["key"]) if self.windows else ()
        ):
            if self.selection.side(row["key"]) == self.side:
                owners.append(numbers[row["shard"], row["index"] // size])
                indices.append(row["index"])
        self._owners, self._indices = np.array(owners, np.int32), np.array(indices, np.int64)

    def __len__(self) -> int:
        return len(self._owners)

    def __getitem__(self, number: int) -> T:
        window, index = self.windows[self._owners[number]], int(self._indices[number])
        row = self.samples.rows_of(window)[index]
        photos = self.samples.photos
        assert photos is not None
        raw = checked(photos.at(window, index), row, self.samples.ledger)
        if raw.is_other_than(row["image_sha256"]):
            raise ShardChanged(f"{self.samples.ledger.shards[row['shard']].url}: sample {index} is {CHANGED}")
        return self.example(self.samples.labelled(0, dict(row), raw))


class RunStream(_Run[T], IterableDataset[T]):
    """Iterable: a run read in order, distributed over ranks and workers so that each sample is read once.

    Whole shards are distributed where there are enough, windows otherwise; ranks may get unequal numbers of samples.
    With `shuffle`, their order and a buffer of examples are drawn by seed and epoch: call `set_epoch` before each.
    """

    def __init__(
        self,
        run: str,
        *,
        transform: Callable[[Example], T] = whole,
        shuffle: bool = False,
        buffer: int = BUFFER,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        """rank, world_size: those of torch.distributed where they are not given; 0 of 1 without it."""
        super().__init__(run, transform, options)
        running = distributed.is_available() and distributed.is_initialized()
        self.rank = rank if rank is not None else distributed.get_rank() if running else 0
        self.world_size = world_size if world_size is not None else distributed.get_world_size() if running else 1
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank={self.rank} of world_size={self.world_size}: ranks begin at 0")
        self.shuffle, self.buffer = shuffle, buffer

    def __iter__(self) -> Iterator[T]:
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        readers, reader = self.world_size * workers, self.rank * workers + own
        seed = f"{self.seed} {int(self._epoch)}"
        units = self._units(readers)
        if self.shuffle:
            random.Random(seed).shuffle(units)
        examples = self._examples(units[reader::readers])
        return _shuffled(examples, random.Random(f"{seed} {reader}"), self.buffer) if self.shuffle else examples

    def _units(self, readers: int) -> list[list[WindowObject]]:
        windows = list(self.samples.ledger.windows())
        shards: dict[str, list[WindowObject]] = {}
        for window in windows:
            shards.setdefault(window.shard, []).append(window)
        if not self._beside and len(shards) >= ENOUGH * readers:
            return list(shards.values())
        return [[window] for window in windows]

    def _examples(self, units: Iterable[list[WindowObject]]) -> Iterator[T]:
        for unit in units:
            for labelled in self.samples.of(_part(unit, self.samples.ledger.run.window), RowCounts()):
                if labelled.side == self.side:
                    yield self.example(labelled)


def _shuffled(examples: Iterator[T], rng: random.Random, size: int) -> Iterator[T]:
    """Shuffle a stream: each example is drawn from a buffer of the next `size`."""
    waiting = list(islice(examples, size))
    for example in examples:
        drawn = rng.randrange(len(waiting))
        yield waiting[drawn]
        waiting[drawn] = example
    rng.shuffle(waiting)
    yield from waiting
