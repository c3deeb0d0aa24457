"""The progress of a driver: its counters, what it shows meanwhile, its notes for `status`, its figures for metrics."""

import json
import logging
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import monotonic, time

from pipeline.errors import PipelineError
from pipeline.logs.context import current
from pipeline.messages import Receipt, ShardFailure
from pipeline.run.layout import ROLL_UPS
from pipeline.run.ledger import Ledger


@dataclass(slots=True)
class Counters:
    """What a driver has counted."""

    windows: int = 0
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # rows by status, other than ok
    wasted_windows: int = 0
    lost_workers: int = 0
    retried_tasks: int = 0
    busy_s: float = 0.0  # labelling, of all workers
    failures: Counter[str] = field(default_factory=Counter)  # tasks that stopped before their end, by kind of error
    broken: dict[str, ShardFailure] = field(default_factory=dict)  # shards given up, by id
    examples: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    closed_bytes: int = 0  # accounted for in shards that are finished
    open_bytes: dict[str, int] = field(default_factory=dict)  # accounted for in each of the other shards, by id
    labelled: int = 0  # samples, committed or not, as workers tell
    retries: int = 0  # requests to storage that workers have sent once more
    ready_workers: int = 0  # whose model is loaded now

    def add(self, receipt: Receipt) -> None:
        """Count a committed window."""
        self.open_bytes[receipt.shard] = max(receipt.end, self.open_bytes.get(receipt.shard, 0))
        if receipt.wasted:  # another driver committed it, and counts it
            self.wasted_windows += 1
            return
        self.windows += 1
        self.rows += receipt.rows
        self.busy_s += receipt.seconds
        self.failed.update(dict(receipt.failed))
        if receipt.example:
            self.examples.append(f"{receipt.shard} {receipt.example}")

    def close(self, shard: str) -> None:
        """Add a shard that no task is left of, by id, to those that are over, which frees its share of memory."""
        self.closed_bytes += self.open_bytes.pop(shard, 0)

    @property
    def bytes_done(self) -> int:
        """Bytes of the input that are accounted for."""
        return self.closed_bytes + sum(self.open_bytes.values())


logger = logging.getLogger(__name__)
ROLL_UP_S = 15.0  # seconds between two writes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a driver's work. Committed rows are ok or failed; labelled samples are committed or under way."""

    rows: int  # committed by this driver
    failed: dict[str, int]
    labelled: int  # by its workers, committed or not
    windows: int
    images_per_s: float
    eta_s: float | None  # None: not known yet
    shards_broken: int
    wasted_windows: int
    lost_workers: int
    retried_tasks: int
    retries: int  # requests to storage that were sent once more
    examples: tuple[str, ...] = ()


@dataclass(slots=True)
class Progress:
    """The speed of a driver. left_bytes: of the input, when it began."""

    left_bytes: int
    clock: Callable[[], float] = monotonic
    first: tuple[float, int] | None = None  # when labelling was first seen, and how much there was

    def snapshot(self, counters: Counters, retries: int = 0) -> Snapshot:
        """The moment. retries: requests to storage that this process itself has sent once more."""
        now, labelled = self.clock(), counters.labelled
        if self.first is None and labelled:
            self.first = (now, labelled)
        since, before = self.first or (now, 0)
        rate = max(0, labelled - before) / (now - since) if now > since else 0.0
        return Snapshot(
            rows=counters.rows,
            failed=dict(counters.failed),
            labelled=max(labelled, counters.rows - counters.failed.total()),
            windows=counters.windows,
            images_per_s=rate,
            eta_s=self._eta(counters, rate),
            shards_broken=len(counters.broken),
            wasted_windows=counters.wasted_windows,
            lost_workers=counters.lost_workers,
            retried_tasks=counters.retried_tasks,
            retries=counters.retries + retries,
            examples=tuple(counters.examples),
        )

    def _eta(self, counters: Counters, rate: float) -> float | None:
        done = counters.bytes_done
        if not rate or not counters.rows or not done:
            return None
        expected = self.left_bytes * counters.rows / done  # rows, if the rest has as many a byte
        return max(0.0, expected - counters.labelled) / rate


class RollUp:
    """A driver's progress on storage, rewritten now and then: `status` shows it, and nothing else needs it."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = monotonic) -> None:
        self._ledger, self._clock = ledger, clock
        self._name = f"{ROLL_UPS}/{uuid.uuid4().hex[:12]}.json"
        self._next = clock()

    def write(self, snapshot: Snapshot, *, last: bool = False) -> bool:
        """Write a moment, at most every ROLL_UP_S seconds; whether it was written.

        last: it is written in any case, since the driver ends.
        """
        if not last and self._clock() < self._next:
            return False
        self._next = self._clock() + ROLL_UP_S
        try:
            note = {"at": time(), "left": last, **current().labels, **asdict(snapshot)}
            return self._ledger.store.replace(self._name, json.dumps(note).encode())
        except PipelineError as error:  # a run goes on without it
            logger.warning("no note of the progress on storage: %s", error)
            return False


FIGURES = {
    "images_left": "Images to be labelled, estimated",
    "bytes_left": "Bytes of the input that are not accounted for",
    "eta_seconds": "Seconds to the end, estimated",
    "images_per_second": "Images labelled a second, by all workers",
    "bare_images_per_second": "Images labelled a second if the workers never waited",
    "workers": "Workers that are ready",
    "cost": "Hours of workers times the price of one",
}


class Figures:
    """A run's figures. left_bytes: of the input; price: of a worker's hour."""

    def __init__(self, left_bytes: int, price: float | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._left_bytes, self._price, self._clock = left_bytes, price, clock
        self._worker_s = 0.0
        self._seen = clock()

    def at(self, snapshot: Snapshot, counters: Counters) -> dict[str, float | None]:
        """The figures of a moment, by name; None: not known yet. Workers ready now were ready since the last call."""
        now, workers = self._clock(), counters.ready_workers
        self._worker_s += workers * (now - self._seen)
        self._seen = now
        labelled = counters.rows - counters.failed.total()
        return {
            "images_left": None if snapshot.eta_s is None else snapshot.eta_s * snapshot.images_per_s,
            "bytes_left": max(0, self._left_bytes - counters.bytes_done),
            "eta_seconds": snapshot.eta_s,
            "images_per_second": snapshot.images_per_s,
            "bare_images_per_second": workers * labelled / counters.busy_s if counters.busy_s else None,
            "workers": workers,
            "cost": None if self._price is None else self._price * self._worker_s / 3600,
        }
