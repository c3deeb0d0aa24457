"""Counts of samples in shards, known or estimated without reading them.

Parquet files and folders record their number; a tar does not, so the beginnings of a few tars tell how many bytes a
sample takes. The counts of given shards are deterministic, and so is a sample drawn by them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

from pipeline.concurrency import prefetch_map
from pipeline.errors import CorruptShard
from pipeline.inputs.folder import reading
from pipeline.inputs.reader import HEADERS_ONLY, read_shard
from pipeline.records import Shard

RECORDING = ("folder", "parquet")  # kinds that record their number of samples
TARS, FIRST = 8, 32  # tars read of each kind, and samples at the beginning of each
RECORDED = 64  # shards read of each such kind
DECOMPRESSED = 4 << 20  # bytes of a compressed tar to read at least: the decompressor reads ahead by an unknown amount
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples of each shard, by id, in order.

    exact: none is estimated; error: relative, at 95 % confidence. damaged: why shards that were read end early.
    """

    samples: Mapping[str, int]
    exact: bool
    error: float | None = None  # None: too few shards were read to estimate it
    damaged: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Of all shards."""
        return sum(self.samples.values())


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The beginning of a shard: samples in so many of its bytes; whole: the shard ends there."""

    shard: Shard
    samples: int
    bytes: int
    whole: bool
    damage: str = ""

    @property
    def total(self) -> float:
        """Samples of the shard, estimated from its beginning."""
        return self.samples if self.whole or not self.bytes else self.samples * self.shard.size / self.bytes


def count(shards: Sequence[Shard], image_key: str | None = None) -> Counts:
    """Samples of each shard, from a listing or the headers of a few of them.

    Raises ConfigError where several columns of a Parquet file may hold the images, StorageError, ShardChanged.
    """
    found: dict[str, int] = {}
    exact = True
    damaged: list[str] = []
    errors: list[tuple[float, float | None]] = []  # of each kind: samples, relative error
    by_kind: dict[str, list[Shard]] = {}
    for shard in shards:
        by_kind.setdefault(_kind(shard), []).append(shard)
    for kind, of_one_kind in by_kind.items():
        most = RECORDED if kind in RECORDING else TARS
        step = max(1.0, len(of_one_kind) / most)  # between shards that are read, in the order of their ids
        ordered = sorted(of_one_kind, key=lambda shard: shard.id)
        chosen = [ordered[int(number * step)] for number in range(min(most, len(ordered)))]
        read = partial(_read_beginning, image_key=image_key)
        beginnings = list(prefetch_map(read, chosen, depth=8, threads=8))
        seen = {each.shard.id: round(each.total) for each in beginnings}
        samples, size = sum(each.total for each in beginnings), sum(each.shard.size for each in beginnings)
        density = samples / size if size else 0.0
        damaged += [f"{each.shard.url}: {each.damage}" for each in beginnings if each.damage]
        of_kind = {shard.id: seen.get(shard.id, round(shard.size * density)) for shard in of_one_kind}
        found |= of_kind
        known = all(each.whole for each in beginnings) and len(beginnings) == len(of_one_kind)
        exact = exact and known
        errors.append((sum(of_kind.values()), 0.0 if known else _error(beginnings)))
    total = sum(samples for samples, _ in errors)
    rough = any(error is None for _, error in errors)
    error = None if rough else sum(samples * (error or 0.0) for samples, error in errors) / max(1, total)
    return Counts({shard.id: found[shard.id] for shard in shards}, exact, error, tuple(damaged))


def _kind(shard: Shard) -> str:
    return "folder" if reading.is_folder(shard.url) else shard.url.lower().rpartition(".")[2]


def _read_beginning(shard: Shard, image_key: str | None) -> _Beginning:
    kind = _kind(shard)
    least = 0 if kind == "tar" else DECOMPRESSED
    seen, end, damage = 0, 0, ""
    try:
        for sample in read_shard(shard, first=HEADERS_ONLY, image_key=image_key, whole=False):
            if seen >= FIRST and end >= least and kind not in RECORDING:
                return _Beginning(shard, seen, end, whole=False)
            seen, end = seen + 1, sample.end
    except CorruptShard as error:
        logger.warning("%s: counted up to the damage: %s", shard.url, error)
        damage = str(error)  # it ends at the damage
    return _Beginning(shard, seen, end, whole=True, damage=damage)


def _error(beginnings: Sequence[_Beginning]) -> float | None:
    """Relative error of the mean number of samples a byte."""
    densities = [each.total / each.shard.size for each in beginnings if each.shard.size]
    if len(densities) < 2 or not (mean := fmean(densities)):
        return None
    return float(1.96 * stdev(densities) / mean / len(densities) ** 0.5)
