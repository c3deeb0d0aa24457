"""The status of a run: from one listing and the notes of its drivers, whatever its size."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from time import time

from pipeline.concurrency import prefetch_map
from pipeline.run.commit import Failure
from pipeline.run.layout import ROLL_UPS, ShardState
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import completed
from pipeline.storage.object_store import Store

FAILURES = 1_000  # records of failures that are read
THREADS = 16  # records read side by side
LIVE_S = 60.0  # seconds after its last note that a driver counts as at work
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Note:
    """The part of a driver's note that is read again; see `progress.Snapshot`. at: seconds of the driver's clock."""

    at: float
    left: bool  # it will write no more
    rows: int
    failed: Mapping[str, int]
    windows: int
    images_per_s: float
    eta_s: float | None
    examples: tuple[str, ...]

    def __post_init__(self) -> None:
        numbers = (self.at, self.rows, self.windows, self.images_per_s, self.eta_s or 0.0, *self.failed.values())
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("a number that is negative, infinite or none")


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a run. rows: committed, as far as drivers noted them. unreadable: notes that were passed over."""

    shards: int
    shards_ended: int
    windows: int
    rows: int
    rows_exact: bool  # every committed window is among the notes
    failed: dict[str, int]
    complete: bool
    bytes_total: int
    bytes_left: int
    images_per_s: float  # of drivers heard of in the last minute
    eta_s: float | None
    drivers: int  # heard of in the last minute
    output_bytes: int
    examples: tuple[str, ...]
    unreadable: tuple[str, ...]


def status(ledger: Ledger, now: Callable[[], float] = time) -> Status:
    """Read the status of a run: in seconds, whatever its size."""
    states = ledger.states()
    found = notes_of(ledger.store)
    notes = [note for note in found.values() if isinstance(note, Note)]
    live = [note for note in notes if not note.left and abs(now() - note.at) < LIVE_S]
    windows = sum(len(state.windows) for state in states.values())
    totals = completed(ledger, states)
    failed = totals.failed if totals else dict(sum((Counter(note.failed) for note in notes), Counter[str]()))
    return Status(
        shards=len(ledger.shards),
        shards_ended=sum(_ended(states, shard) for shard in ledger.shards),
        windows=windows,
        rows=totals.rows if totals else sum(note.rows for note in notes),
        rows_exact=totals is not None or windows == sum(note.windows for note in notes),
        failed=failed,
        complete=totals is not None,
        bytes_total=ledger.shards.bytes,
        bytes_left=bytes_left(ledger, states),
        images_per_s=sum(note.images_per_s for note in live),
        eta_s=max((note.eta_s for note in live if note.eta_s is not None), default=None),
        drivers=len(live),
        output_bytes=sum(window.size for state in states.values() for window in state.windows.values()),
        examples=tuple(example for note in notes for example in note.examples)[-5:],
        unreadable=tuple(name for name, note in found.items() if isinstance(note, str)),
    )


def notes_of(store: Store) -> dict[str, Note | str]:
    """The notes of drivers by name; of one that cannot be read, what is wrong with it."""
    found: dict[str, Note | str] = {}
    for name, _ in store.list(f"{ROLL_UPS}/"):
        try:
            found[name] = store.document(Note, name)
        except (ValueError, FileNotFoundError) as error:
            logger.debug("%s is passed over: %s", name, error)
            found[name] = str(error)
    return found


def failures(ledger: Ledger) -> Counter[Failure]:
    """Failures recorded of a run, as far as they are read (FAILURES), each with how many records say it."""
    names = (name for name, _ in ledger.store.list("failures/") if name.endswith(".json"))

    def read(name: str) -> Failure | None:
        try:
            return ledger.store.document(Failure, name)
        except (ValueError, FileNotFoundError) as error:  # they are for people, and may be edited
            logger.warning("%s is passed over: %s", name, error)
            return None

    found = prefetch_map(read, islice(names, FAILURES), depth=THREADS, threads=THREADS)
    return Counter(failure for failure in found if failure)


def bytes_left(ledger: Ledger, states: dict[str, ShardState]) -> int:
    """Bytes of the shards that have no end record."""
    return sum(shard.size for shard in ledger.shards.values() if not _ended(states, shard.id))


def _ended(states: dict[str, ShardState], shard: str) -> bool:
    return shard in states and states[shard].ended
