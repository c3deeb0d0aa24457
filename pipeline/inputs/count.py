"""How many samples shards hold, known or estimated without reading them.

Parquet and folders say it; a tar does not, so the beginnings of a few tell how many bytes a sample takes. The same
shards give the same counts: whoever draws by them draws the same.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.concurrency import prefetch_map
from pipeline.errors import CorruptShard
from pipeline.inputs.folder import reading
from pipeline.inputs.reader import read_shard
from pipeline.records import Shard

TARS, FIRST = 8, 32  # tars looked at, of each kind, and samples at the beginning of each
SAID = 64  # shards looked at of a kind that says how many samples it holds
DECOMPRESSED = 4 << 20  # bytes of a compressed tar that must be behind: what lies decompressed ahead is not told apart
NO_BYTES = 1 << 62  # as the first sample wanted: those before it come by their headers alone
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples of each shard, by id, in order.

    exact: none is estimated; error: relative, at 95 % confidence. damaged: why some that were looked at have no more.
    """

    samples: Mapping[str, int]
    exact: bool
    error: float | None = None  # None: too few shards were looked at to tell
    damaged: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Of all shards."""
        return sum(self.samples.values())


@dataclass(frozen=True, slots=True)
class _Look:
    """What the beginning of a shard shows: samples in so many of its bytes; whole: there is no more of it."""

    shard: Shard
    samples: int
    bytes: int
    whole: bool
    damage: str = ""

    @property
    def total(self) -> float:
        """Samples of the shard, if the rest is like its beginning."""
        return self.samples if self.whole or not self.bytes else self.samples * self.shard.size / self.bytes


def count(shards: Sequence[Shard], image_key: str | None = None) -> Counts:
    """Samples of each shard, from a listing or the headers of a few of them.

    Raises ConfigError where it is open which column of a Parquet file holds images, StorageError, ShardChanged.
    """
    found: dict[str, int] = {}
    exact = True
    damaged: list[str] = []
    errors: list[tuple[float, float | None]] = []  # of each kind: samples, relative error
    for kind, same in _by_kind(shards).items():
        looked = list(prefetch_map(lambda shard: _look(shard, image_key), _spread(same, kind), depth=8, threads=8))
        seen = {look.shard.id: round(look.total) for look in looked}
        samples, size = sum(look.total for look in looked), sum(look.shard.size for look in looked)
        each = samples / size if size else 0.0
        damaged += [f"{look.shard.url}: {look.damage}" for look in looked if look.damage]
        of_kind = {shard.id: seen.get(shard.id, round(shard.size * each)) for shard in same}
        found |= of_kind
        known = all(look.whole for look in looked) and len(looked) == len(same)
        exact = exact and known
        errors.append((sum(of_kind.values()), 0.0 if known else _error(looked)))
    total = sum(samples for samples, _ in errors)
    rough = any(error is None for _, error in errors)
    error = None if rough else sum(samples * (error or 0.0) for samples, error in errors) / max(1, total)
    return Counts({shard.id: found[shard.id] for shard in shards}, exact, error, tuple(damaged))


def _by_kind(shards: Iterable[Shard]) -> dict[str, list[Shard]]:
    kinds: dict[str, list[Shard]] = {}
    for shard in shards:
        kinds.setdefault(_kind(shard), []).append(shard)
    return kinds


def _kind(shard: Shard) -> str:
    return "folder" if reading.is_folder(shard.url) else shard.url.lower().rpartition(".")[2]


def _spread(shards: list[Shard], kind: str) -> list[Shard]:
    """Shards at even distances in the order of their ids."""
    most = SAID if _says(kind) else TARS
    ordered = sorted(shards, key=lambda shard: shard.id)
    return ordered if len(ordered) <= most else [ordered[i * len(ordered) // most] for i in range(most)]


def _says(kind: str) -> bool:
    return kind in ("folder", "parquet")


def _look(shard: Shard, image_key: str | None) -> _Look:
    kind = _kind(shard)
    least = 0 if kind == "tar" else DECOMPRESSED
    seen, end, damage = 0, 0, ""
    try:
        for sample in read_shard(shard, first=NO_BYTES, image_key=image_key, whole=False):
            if seen >= FIRST and end >= least and not _says(kind):
                return _Look(shard, seen, end, whole=False)
            seen, end = seen + 1, sample.end
    except CorruptShard as error:
        logger.warning("%s: counted up to the damage: %s", shard.url, error)
        damage = str(error)  # there is no more of it than what lies before the damage
    return _Look(shard, seen, end, whole=True, damage=damage)


def _error(looked: Sequence[_Look]) -> float | None:
    """How far the mean number of samples a byte may lie from that of all shards."""
    densities = [look.total / look.shard.size for look in looked if look.shard.size]
    if len(densities) < 2 or not (mean := fmean(densities)):
        return None
    error: float = 1.96 * stdev(densities) / mean / len(densities) ** 0.5
    return error
