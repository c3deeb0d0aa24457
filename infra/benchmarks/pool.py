"""What a crowd of workers costs the driver: their answers, once a second each, through a real Ray.

    python infra/benchmarks/pool.py

One actor plays all workers, each with a window every WINDOW_S seconds, so that the machine need not hold their
processes. Everything between the driver and that actor is as in a run: registry, schedule, calls, answers.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import ray
from driver import a_run

from pipeline.cluster import Cluster, RayPool, ray_process
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters
from pipeline.messages import Receipt, TaskDone
from pipeline.run.ledger import Ledger
from pipeline.worker.build import WorkerSettings
from pipeline.worker.host import Report
from pipeline.worker.stage_timer import MetricsSnapshot

WORKERS = (10, 100, 300, 1_000)
WINDOW_S = 60.0  # of 1,024 images on a GPU at 17 images/s
HOST = "from pool import CrowdedHost, ray_process; ray_process.main(CrowdedHost)"
SECONDS = 20.0  # measured, after as many for the crowd to come


class Crowd:
    """All workers: each holds its tasks, and is done with the first of them when its time has come."""

    def __init__(self) -> None:
        self._held, self._due, self._calls = {}, {}, 0

    async def exchange(self, worker: int, tasks: list, wait_s: float) -> Report:
        """As WorkerHost.exchange; it answers at once where a window has come in."""
        self._calls += 1
        held = self._held.setdefault(worker, [])
        held += tasks
        if tasks and worker not in self._due:
            self._due[worker] = time.monotonic() + random.uniform(0, WINDOW_S)
        left = self._due.get(worker, float("inf")) - time.monotonic()
        await asyncio.sleep(min(wait_s, max(0.0, left)))
        outcomes = ()
        if held and left <= wait_s:
            task = held.pop(0)
            outcomes = (Receipt(task.shard.id, 0, 1024, (), 1 << 20, 1.0), TaskDone(task, 1, ended=True))
            self._due[worker] = time.monotonic() + WINDOW_S
        return Report(outcomes, 1024, True, 0.0, made=MetricsSnapshot({"ok": 1024}, 1, segments=9000), node="node")

    def calls(self) -> int:
        """Answers asked for so far."""
        return self._calls


class CrowdedHost(ray_process.Host):
    """All workers are one actor."""

    def begin(self, *given):
        """As Host, and the crowd comes."""
        began = super().begin(*given)
        self._crowd = ray.remote(Crowd).options(max_concurrency=10_000, num_cpus=0).remote()
        self._started = 0
        return began

    def _start(self, spec):
        self._started += 1
        return Member(self._crowd, self._started)

    def spent(self) -> tuple[int, float]:
        """Answers asked for so far, processor seconds of this process."""
        return ray.get(self._crowd.calls.remote()), time.process_time()


class Member:
    """One of the crowd, called as an actor is."""

    def __init__(self, crowd, number: int) -> None:
        self.exchange, self._crowd, self._number = self, crowd, number

    def remote(self, tasks: list, wait_s: float):
        """Ask for an answer."""
        return self._crowd.exchange.remote(self._number, tasks, wait_s)


class Over(Exception):
    """The time to measure is over."""


def measure(workers: int) -> tuple[float, float, float]:
    """Answers a second, seconds between two answers of a worker, processor seconds of the driver a second."""
    marks = []

    def tick() -> None:
        now = time.monotonic()
        if len(marks) < 2 and now > began + SECONDS * (1 + len(marks)):
            calls, busy = cluster.call("spent")
            marks.append((calls, now, busy + time.process_time()))
        if len(marks) == 2:
            raise Over

    with tempfile.TemporaryDirectory() as folder, Cluster(host=HOST) as cluster:
        a_run(folder, 100 * workers, 1)
        ledger = Ledger.open(folder)
        pool = RayPool(cluster, WorkerSettings(folder, "none"), workers, device="cpu")
        began = time.monotonic()
        with suppress(Over):
            drive(ledger, pool, ledger.unfinished(), Counters(), tick=tick)
    calls, seconds, busy = (last - first for first, last in zip(*marks, strict=True))
    return calls / seconds, workers * seconds / calls, busy / seconds


def main() -> None:
    """A line a size."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # so that Ray's processes find the crowd
    sys.stdout.write("workers | answers/s | s between two of a worker | cores of the driver\n")
    for workers in WORKERS:
        rate, period, busy = measure(workers)
        sys.stdout.write(f"{workers:>7,} | {rate:>9.0f} | {period:>25.2f} | {busy:>19.2f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
