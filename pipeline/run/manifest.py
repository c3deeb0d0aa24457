"""The declaration that a run is complete: written after everything was checked, valid while all it lists exists.

manifest.<n>.parquet   one row a shard: windows, rows, failed rows, versions of its objects; sealed with run.json
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
RESUME = "the same `diffseg label` labels what is missing"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a run. objects: names of those that are broken or foreign, to be set aside. todo: what mends it."""

    line: str
    objects: tuple[str, ...] = ()
    todo: str = ""

    def __str__(self) -> str:
        return self.line

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.todo or (REPAIR if self.objects else RESUME)


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

    def __post_init__(self) -> None:
        if min(self.shards, self.windows, self.rows, *self.failed.values()) < 0:
            raise ValueError("a negative number")

    @property
    def failed_rows(self) -> int:
        """Rows without labels."""
        return sum(self.failed.values())


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a run was declared to be. totals: where it still is that, by number and size of its objects.

    changed: ids of shards with objects that are not those that were proved: their rows are to be read again.
    """

    totals: Totals | None = None
    changed: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A shard in a manifest. What is None was not kept by older versions."""

    shard: str
    url: str = ""
    windows: int
    rows: int
    failed: int
    retries: int
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


@dataclass(frozen=True, slots=True)
class Seal:
    """What a manifest says of itself. run: the text of run.json; digest: of that and of the rows."""

    run: str
    digest: str

    @classmethod
    def of(cls, run: str, rows: Sequence[Row]) -> "Seal":
        """The seal of a run that was proved."""
        return cls(run, hashlib.blake2b(repr((run, *rows)).encode(), digest_size=16).hexdigest())


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
    totals = total(checked)
    number = max(last_manifest(ledger.store)) + 1
    rows = [
        Row(
            shard=c.shard.id,
            url=c.shard.url,
            windows=c.windows,
            rows=c.rows,
            failed=sum(c.failed.values()),
            retries=c.retries,
            bytes=c.size,
            version=c.version,
            size=c.shard.size,
            etag=c.shard.etag,
        )
        for c in checked
    ]
    seal = Seal.of(keep_run(ledger.store, ledger.run), rows)
    data = table.encode_rows([asdict(row) for row in rows], documents.to_json(seal))
    ledger.store.put_new(f"{MANIFEST}{number}{PARQUET}", data)
    ledger.store.put_new(f"{SUCCESS}{number}", documents.to_json(totals))
    return totals


def last_manifest(store: Store) -> tuple[int, int]:
    """The numbers of the last declaration, by `_SUCCESS.<n>` and by `manifest.<n>.parquet`; -1 where there is none."""

    def last(prefix: str, suffix: str) -> int:
        names = (name.removeprefix(prefix).removesuffix(suffix) for name, _ in store.list(prefix))
        return max((int(name) for name in names if name.isdecimal()), default=-1)

    return last(SUCCESS, ""), last(MANIFEST, PARQUET)


def read_manifest(store: Store, number: int) -> tuple[list[Row], Seal | None]:
    """The shards of a manifest, and its seal if it has one. Raises FileNotFoundError, ValueError where it is broken."""
    listed, note = table.decode_rows(store.get(f"{MANIFEST}{number}{PARQUET}"))
    rows = documents.validated(list[Row], listed)
    seal = documents.from_json(Seal, note) if note else None
    if seal and seal != Seal.of(seal.run, rows):
        raise ValueError("its rows do not match their digest")
    return rows, seal


def declared(ledger: Ledger, states: dict[str, ShardState]) -> Declaration:
    """The last declaration, held against a listing."""
    if (number := max(last_manifest(ledger.store))) < 0:
        return Declaration()
    try:
        listed, _ = read_manifest(ledger.store, number)
    except (FileNotFoundError, ValueError) as error:  # it was complete once, and nothing says by which objects
        logger.debug("the manifest declares nothing: %s", error)
        return Declaration(changed=ledger.shards)
    found = {row.shard: states.get(row.shard, ShardState()) for row in listed}
    changed = {row.shard for row in listed if row.version not in (None, found[row.shard].version)}
    try:
        totals = ledger.store.document(Totals, f"{SUCCESS}{number}")
    except (FileNotFoundError, ValueError) as error:
        logger.debug("%s%s declares nothing: %s", SUCCESS, number, error)
        return Declaration(changed=changed)
    valid = all(row.is_of(found[row.shard]) for row in listed) and totals.shards == len(listed)
    valid &= found.keys() >= states.keys() and found.keys() == ledger.shards.keys() and len(found) == len(listed)
    for name in ("windows", "rows"):
        valid &= getattr(totals, name) == sum(getattr(row, name) for row in listed)
    valid &= totals.failed_rows == sum(row.failed for row in listed)
    return Declaration(totals if valid else None, changed)


def completed(ledger: Ledger, states: dict[str, ShardState]) -> Totals | None:
    """The totals of a run that was declared complete and still is, by a listing; else None."""
    return declared(ledger, states).totals
