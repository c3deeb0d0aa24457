"""The declaration that a run is complete: written after everything was checked, valid while all it lists exists.

manifest.<n>.parquet   one row a shard: windows, rows, failed rows, version of its objects, pin; in its note run.json
_SUCCESS.<n>           the totals; n rises when a finished run is extended or retried
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field

from pipeline import documents, table
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.layout import ShardState
from pipeline.run.ledger import Ledger
from pipeline.run.open import keep_run
from pipeline.storage.object_store import Store

SUCCESS, MANIFEST, PARQUET = "_SUCCESS.", "manifest.", ".parquet"
REPAIR = "`diffseg verify --repair` sets it aside, and the same `diffseg label` makes it again"
DIGEST = 32  # letters of the digest before run.json in a manifest's note
RESUME = "the same `diffseg label` labels what is missing"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a run. objects: names of those that are broken or foreign, to be set aside. todo: what else mends it.

    others: a window that is what its name says, and otherwise not what the run says.
    """

    line: str
    objects: tuple[str, ...] = ()
    todo: str = ""
    others: bool = False

    def __str__(self) -> str:
        return f"{self.line}; {self.todo or (REPAIR if self.objects else RESUME)}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What `verify` found of one shard. faults: none where the shard is proved complete."""

    shard: Shard
    windows: int
    rows: int
    failed: dict[str, int]
    faults: tuple[Fault, ...]
    size: int = 0  # bytes of its objects below labels/
    retries: int = 0  # times that windows were labelled again (`--retry-failed`)
    lost: tuple[ShardTask, ...] = ()  # windows counted by the shard's end record that are missing
    repeated_keys: int | None = None  # samples whose key another sample of the shard has; None: not counted
    version: str = ""  # of all its objects together, see `ShardState`


@dataclass(frozen=True, slots=True)
class Totals:
    """A run in numbers."""

    shards: int = 0
    windows: int = 0
    rows: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # rows by status, other than ok

    @property
    def failed_rows(self) -> int:
        """Rows without labels."""
        return sum(self.failed.values())


@dataclass(frozen=True, slots=True)
class Row:
    """A shard in a manifest. What is None was not kept by older versions."""

    shard: str
    windows: int
    rows: int
    failed: int
    retries: int
    url: str = ""
    bytes: int | None = None  # of its objects below labels/
    version: str | None = None  # of them, see `ShardState`
    size: int | None = None  # of the shard, as it was pinned
    etag: str | None = None

    def is_of(self, state: ShardState) -> bool:
        """Whether a listing shows as many windows, retries and bytes, and nothing else."""
        windows = state.windows
        whole = state.ended and not state.strays and len(windows) == self.windows == max(windows, default=-1) + 1
        same = all(window.size for window in windows.values()) if self.bytes is None else state.size == self.bytes
        return whole and same and sum(window.revision for window in windows.values()) == self.retries


def total(checked: Iterable[Checked]) -> Totals:
    """The sums over checked shards."""
    shards, windows, rows = 0, 0, 0
    failed: Counter[str] = Counter()
    for shard in checked:
        shards, windows, rows = shards + 1, windows + shard.windows, rows + shard.rows
        failed.update(shard.failed)
    return Totals(shards, windows, rows, dict(failed))


def write_manifest(ledger: Ledger, checked: list[Checked]) -> Totals:
    """Declare a run complete in which `verify` found no fault."""
    totals, number = total(checked), last_manifest(ledger.store) + 1
    rows = [
        Row(
            c.shard.id,
            c.windows,
            c.rows,
            sum(c.failed.values()),
            c.retries,
            c.shard.url,
            c.size,
            c.version,
            c.shard.size,
            c.shard.etag,
        )
        for c in checked
    ]
    run = keep_run(ledger.store, ledger.run)
    data = table.encode_rows([asdict(row) for row in rows], _digest(run, rows) + run)
    ledger.store.put_new(f"{MANIFEST}{number}{PARQUET}", data)
    ledger.store.put_new(f"{SUCCESS}{number}", documents.to_json(totals))
    return totals


def last_manifest(store: Store) -> int:
    """The number of the last declaration, whichever of its two objects is there; -1 where there is none."""
    names = [name for prefix in (SUCCESS, MANIFEST) for name, _ in store.list(prefix)]
    numbers = (name.removeprefix(SUCCESS).removeprefix(MANIFEST).removesuffix(PARQUET) for name in names)
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def read_manifest(store: Store, number: int) -> tuple[list[Row], bytes]:
    """The shards of a manifest and the run.json that it was proved with; empty in one of an older version.

    Raises FileNotFoundError, ValueError where it is damaged.
    """
    listed, note = table.decode_rows(store.get(f"{MANIFEST}{number}{PARQUET}"))
    rows, digest, run = documents.validated(list[Row], listed), note[:DIGEST], note[DIGEST:]
    if note and digest != _digest(run, rows):
        raise ValueError("its rows do not match their digest")
    return rows, run


def _digest(run: bytes, rows: Sequence[Row]) -> bytes:
    return hashlib.blake2b(repr((run, *rows)).encode(), digest_size=DIGEST // 2).hexdigest().encode()


def declared(ledger: Ledger, states: dict[str, ShardState]) -> tuple[Totals | None, Collection[str]]:
    """The totals of a run that was declared complete, where it still is by number and size of its objects; else None.

    And the ids of shards with other objects than those that were proved then: their rows are to be read again.
    """
    if (number := last_manifest(ledger.store)) < 0:
        return None, ()
    changed: Collection[str] = ledger.shards
    try:
        listed, _ = read_manifest(ledger.store, number)
        found = {row.shard: states.get(row.shard, ShardState()) for row in listed}
        changed = {row.shard for row in listed if row.version not in (None, found[row.shard].version)}
        totals = ledger.store.document(Totals, f"{SUCCESS}{number}")
    except (FileNotFoundError, ValueError) as error:
        logger.debug("declaration %s says nothing: %s", number, error)
        return None, changed
    valid = all(row.is_of(found[row.shard]) for row in listed) and totals.shards == len(listed) == len(found)
    valid &= found.keys() >= states.keys() and found.keys() == ledger.shards.keys()
    sums = [sum(column) for column in zip(*((r.windows, r.rows, r.failed) for r in listed), strict=True)]
    valid &= sums == [totals.windows, totals.rows, totals.failed_rows] and min([0, *totals.failed.values()]) == 0
    return totals if valid else None, changed


def completed(ledger: Ledger, states: dict[str, ShardState]) -> Totals | None:
    """The totals of a run that was declared complete and still is, by a listing; else None."""
    return declared(ledger, states)[0]
