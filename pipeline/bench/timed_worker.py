"""A worker that says when it began, when it last committed, and what each of its stages cost the processor.

The stages are threads of one process, each with a clock of its own: reading, decoding, labelling, encoding, committing.
What no stage took is Ray, the heartbeat and the interpreter.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from pipeline.messages import Outcome, Receipt, ShardTask
from pipeline.run.ledger import Ledger
from pipeline.worker.window import WindowWork
from pipeline.worker.worker import Worker

SPENT = "spent"  # folder of a run: <attempt id>.json
STAGES = {"ahead-decode": "read", "decode": "decode", "ahead-commit": "label", "encode": "encode", "commit": "commit"}


@dataclass(frozen=True, slots=True)
class Spent:
    """A worker's time. began: its first batch; ended: its last commit, both by the clock on the wall."""

    began: float
    ended: float
    rows: int
    busy_s: float
    waited_s: dict[str, float] = field(default_factory=dict)  # for each stage, see `stage_timer`
    cpu_s: dict[str, float] = field(default_factory=dict)  # by stage, and `other`


class TimedWorker(Worker):
    """A worker that leaves a note of its time with every window."""

    _first = 0.0
    _cpu_before = 0.0  # of the process, loading and all

    def _label(self, work: WindowWork) -> None:
        if not self._first:
            self._first = time.time()
        super()._label(work)

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[Outcome]:
        """As any worker."""
        self._cpu_before = time.process_time()
        for outcome in super().run(tasks):
            if isinstance(outcome, Receipt):
                ended, reading = time.time(), self.timer.snapshot()
                cpu = self._cpu()
                note = Spent(self._first, ended, self.labelled, reading.busy_s, dict(reading.waited_s), cpu)
                self.ledger.store.replace(
                    f"{SPENT}/{self.ledger.writer.attempt}.json", json.dumps(asdict(note)).encode()
                )
            yield outcome

    def _cpu(self) -> dict[str, float]:
        spent = dict.fromkeys(STAGES.values(), 0.0)
        for thread in threading.enumerate():
            stage = STAGES.get(thread.name) or STAGES.get(thread.name.rpartition("_")[0])
            if stage and thread.ident:
                spent[stage] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return {**spent, "other": time.process_time() - self._cpu_before - sum(spent.values())}


def spent(ledger: Ledger) -> list[Spent]:
    """The last note of every worker of a run."""
    return [Spent(**json.loads(ledger.store.get(name))) for name, _ in ledger.store.list(f"{SPENT}/")]
