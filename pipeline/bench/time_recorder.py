"""When a worker of a bench job began and last committed, and what its stages cost: one note a worker, on storage."""

import time
from dataclasses import dataclass, field

from pipeline import documents
from pipeline.messages import Receipt, ShardTask
from pipeline.run.ledger import Ledger
from pipeline.worker.stage_timer import MetricsSnapshot

NOTES = "spent"  # folder of a run: <attempt id>.json


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """A worker's time. began: its first batch; ended: its last commit, both by the clock on the wall."""

    began: float
    ended: float
    rows: int
    busy_s: float
    waited_s: dict[str, float] = field(default_factory=dict)  # by stage, see `stage_timer`
    cpu_s: dict[str, float] = field(default_factory=dict)  # by stage, and `other`: Ray, heartbeats, the interpreter


class TimeRecorder:
    """A WorkerObserver that leaves a note of the worker's time with every window."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._began = 0.0
        self._cpu_before = time.process_time()  # loading and all

    def window_began(self, task: ShardTask, number: int) -> None:
        """The first one counts."""
        self._began = self._began or time.time()

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        """Replace the note."""
        ended, rows = time.time(), snapshot.rows
        other = time.process_time() - self._cpu_before - sum(snapshot.cpu_s.values())
        cpu = {**snapshot.cpu_s, "other": other}
        note = WorkerTimes(self._began, ended, rows, snapshot.busy_s, dict(snapshot.waited_s), cpu)
        self._ledger.store.replace(f"{NOTES}/{self._ledger.writer.attempt}.json", documents.to_json(note))


def recorded_times(ledger: Ledger) -> list[WorkerTimes]:
    """The last note of every worker of a run."""
    return [documents.from_json(WorkerTimes, ledger.store.get(name)) for name, _ in ledger.store.list(f"{NOTES}/")]
