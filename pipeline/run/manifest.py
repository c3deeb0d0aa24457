"""The declaration that a run is complete: written after everything was checked, valid while all it lists exists.

manifest.<n>.parquet   one row a shard: windows, rows, failed rows
_SUCCESS.<n>           the totals; n rises when a finished run is extended or retried
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import documents, table
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.layout import ShardState
from pipeline.run.ledger import Ledger

SUCCESS = "_SUCCESS."
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checked:
    """What `verify` found of one shard. faults: a line each; none where the shard is proved complete."""

    shard: Shard
    windows: int
    rows: int
    failed: dict[str, int]
    faults: tuple[str, ...]
    size: int = 0  # bytes of its objects below labels/
    retries: int = 0  # times that windows were labelled again (`--retry-failed`)
    lost: tuple[ShardTask, ...] = ()  # windows counted by the shard's end record that are missing
    repeated_keys: int | None = None  # samples whose key another sample of the shard has; None: not counted


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
    number = _count(ledger)
    rows = [
        {
            "shard": c.shard.id,
            "url": c.shard.url,
            "windows": c.windows,
            "rows": c.rows,
            "failed": sum(c.failed.values()),
            "retries": c.retries,
            "bytes": c.size,
        }
        for c in checked
    ]
    ledger.store.put_new(f"manifest.{number}.parquet", table.encode_rows(rows))
    ledger.store.put_new(f"{SUCCESS}{number}", documents.to_json(totals))
    return totals


def completed(ledger: Ledger, states: dict[str, ShardState]) -> Totals | None:
    """The totals of a run that was declared complete and still is, by a listing; else None."""
    number = _count(ledger) - 1
    if number < 0:
        return None
    try:
        listed = table.decode_rows(ledger.store.get(f"manifest.{number}.parquet"))
        totals = documents.from_json(Totals, ledger.store.get(f"{SUCCESS}{number}"))
        valid = all(_is_unchanged(row, states.get(row["shard"], ShardState())) for row in listed)
        names = {row["shard"] for row in listed}
        valid &= names >= states.keys() and names == ledger.shards.keys() and len(listed) == len(names)
        listed_totals = [sum(row[name] for row in listed) for name in ("windows", "rows", "failed")]
        valid &= [totals.windows, totals.rows, totals.failed_rows] == listed_totals and totals.shards == len(listed)
        valid &= min([totals.rows, *totals.failed.values()]) >= 0
    except (
        FileNotFoundError,
        IsADirectoryError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # whatever is damaged declares nothing: the audit does
        logger.debug("the manifest declares nothing: %s", error)
        return None
    return totals if valid else None


def _is_unchanged(row: Mapping[str, Any], state: ShardState) -> bool:
    windows = state.windows
    whole = state.ended and not state.strays and len(windows) == row["windows"] == max(windows, default=-1) + 1
    same = state.size == row["bytes"] if "bytes" in row else all(window.size for window in windows.values())
    return whole and same and sum(window.revision for window in windows.values()) == row["retries"]


def _count(ledger: Ledger) -> int:
    return sum(1 for _ in ledger.store.list(SUCCESS))
