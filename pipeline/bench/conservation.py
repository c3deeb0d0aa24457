"""The proof of what a run came through whose workers were killed: every sample has one row, and little work was lost.

Every worker writes down a window before it labels the first sample of it. What it began and never committed is work
that others had to do again.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.messages import Receipt, ShardTask
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker.stage_timer import MetricsSnapshot

BEGUN = "begun"  # folder of a run: <attempt id>/<shard id>.<window>.<8 hex, since a worker may begin one twice>, empty
MOST_WASTED = 2  # windows a lost worker: one being committed, one being labelled


class BeginRecorder:
    """A WorkerObserver that writes down every window that the worker begins."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def window_began(self, task: ShardTask, number: int) -> None:
        """Put an empty object on storage."""
        name = f"{BEGUN}/{self._ledger.writer.attempt}/{task.shard.id}.{number:06d}.{uuid.uuid4().hex[:8]}"
        self._ledger.store.put_new(name, b"")

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        """Nothing: the windows' own metadata says who committed them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a run. wasted: windows begun and never committed, by worker; only those that wasted any."""

    samples: int
    rows: int
    lost: int
    twice: int
    statuses: dict[str, int]  # other than ok
    faults: tuple[str, ...]  # of the audit, everything read again
    windows: int
    workers: int
    wasted: tuple[int, ...]

    def broken(self, lost_workers: int) -> Iterator[str]:
        """The laws that do not hold. lost_workers: how many were killed."""
        if self.lost:
            yield f"{self.lost} samples have no row"
        if self.twice:
            yield f"{self.twice} rows are there twice or belong to no sample"
        if self.statuses:
            yield f"rows without labels though nothing was wrong with a sample: {self.statuses}"
        yield from self.faults
        worst, total = max(self.wasted, default=0), sum(self.wasted)
        if worst > MOST_WASTED:
            yield f"a worker took {worst} windows with it, at most {MOST_WASTED} are allowed"
        if total > MOST_WASTED * lost_workers:
            yield f"{total} windows were labelled again for {lost_workers} lost workers, {MOST_WASTED} each are allowed"


def prove(ledger: Ledger, images: int) -> Verdict:
    """Read a whole run again, and count. images: samples of every shard."""
    expected = Counter((shard, index) for shard in ledger.shards for index in range(images))
    found: Counter[tuple[str, int]] = Counter()
    statuses: Counter[str] = Counter()
    for row in ledger.rows(["shard", "index", "status"]):
        found[row["shard"], row["index"]] += 1
        statuses[row["status"]] += row["status"] != OK
    begun = Counter(name.split("/")[1] for name, _ in ledger.store.list(f"{BEGUN}/"))  # windows, by attempt id
    wasted = begun - Counter(ledger.window_metadata(window).attempt for window in ledger.windows())
    return Verdict(
        samples=expected.total(),
        rows=found.total(),
        lost=(expected - found).total(),
        twice=(found - expected).total(),
        statuses=dict(+statuses),
        faults=tuple(str(fault) for shard in audit(ledger, full=True) for fault in shard.faults),
        windows=sum(1 for _ in ledger.windows()),
        workers=len(begun),
        wasted=tuple(wasted.values()),
    )
