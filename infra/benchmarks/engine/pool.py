"""What a crowd of workers costs the driver: their answers, once a second each, through a real Ray.

    python infra/benchmarks/engine/pool.py
    python infra/benchmarks/engine/pool.py --errors

One actor plays all workers, each with a window every WINDOW_S seconds, so that the machine need not hold their
processes. Everything between the driver and that actor is as in a run: registry, schedule, calls, answers. With
--errors each worker logs an error with its traceback a second, for minutes, and the driver writes its log.
"""

import asyncio
import logging
import os
import random
import re
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import ray
from driver import a_run

from pipeline.cluster import Cluster, RayPool, ray_process
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters
from pipeline.logs.records import Buffer, Record, written
from pipeline.messages import Receipt, TaskDone
from pipeline.run.ledger import Ledger
from pipeline.worker.build import WorkerSettings
from pipeline.worker.host import Report
from pipeline.worker.stage_timer import MetricsSnapshot

WORKERS = (10, 100, 300, 1_000)
WINDOW_S = 60.0  # of 1,024 images on a GPU at 17 images/s
HOST = "from pool import CrowdedServer, ray_process; ray_process.main(CrowdedServer)"
SECONDS = 20.0  # measured, after as many for the crowd to come
ERRORS = "POOL_ERRORS"  # set in the environment of a crowd whose workers log errors


class Crowd:
    """All workers: each holds its tasks, and is done with the first of them when its time has come."""

    def __init__(self) -> None:
        self._held, self._due, self._calls = {}, {}, 0
        self._buffers = {}  # as many as there are workers that log
        self._errors = ERRORS in os.environ
        try:
            {}["sample"]
        except KeyError:
            self._error = sys.exc_info()

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
        made, log = MetricsSnapshot({"ok": 1024}, 1, segments=9000), self._logged(worker) if self._errors else ()
        return Report(outcomes, 1024, True, 0.0, made=made, node="node", log=log)

    def _logged(self, worker: int) -> tuple[Record, ...]:
        buffer = self._buffers.setdefault(worker, Buffer())
        said = f"sample {self._calls} has no labels"
        buffer.handle(logging.LogRecord("pipeline.worker.x", logging.ERROR, __file__, 1, said, None, self._error))
        return buffer.take()

    def calls(self) -> int:
        """Answers asked for so far."""
        return self._calls


class CrowdedServer(ray_process.RayServer):
    """All workers are one actor."""

    def begin(self, *given):
        """As RayServer, and the crowd comes."""
        began = super().begin(*given)
        self._crowd = ray.remote(Crowd).options(max_concurrency=10_000, num_cpus=0).remote()
        self._started = 0
        return began

    def _start(self, spec):
        self._started += 1
        return Member(self._crowd, self._started)

    def spent(self) -> tuple[int, float, int]:
        """Answers asked for so far, processor seconds of this process, bytes it has in memory."""
        return ray.get(self._crowd.calls.remote()), time.process_time(), resident()


class Member:
    """One of the crowd, called as an actor is."""

    def __init__(self, crowd, number: int) -> None:
        self.exchange, self._crowd, self._number = self, crowd, number

    def remote(self, tasks: list, wait_s: float):
        """Ask for an answer."""
        return self._crowd.exchange.remote(self._number, tasks, wait_s)


class Over(Exception):
    """The time to measure is over."""


def resident() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(workers: int, times: int = 1) -> list[tuple[float, float, float, float]]:
    """For each of so many times SECONDS: answers a second, seconds between two answers of a worker, processor seconds
    of the driver a second, and at its end the driver's MB in memory. The driver is its process and that of Ray.
    """
    marks = []

    def tick() -> None:
        now = time.monotonic()
        if now > began + SECONDS * (1 + len(marks)):
            calls, busy, size = cluster.call("spent")
            marks.append((calls, now, busy + time.process_time(), (size + resident()) / 1e6))
        if len(marks) > times:
            raise Over

    with tempfile.TemporaryDirectory() as folder, Cluster(host=HOST) as cluster:
        a_run(folder, 100 * workers, 1)
        ledger = Ledger.open(folder)
        pool = RayPool(cluster, WorkerSettings(folder, "none"), workers, device="cpu")
        began = time.monotonic()
        with suppress(Over):
            drive(ledger, pool, ledger.unfinished(), Counters(), tick=tick)
    measured = []
    for (calls, at, busy, _), (more, then, busier, size) in pairwise(marks):
        answers, seconds = more - calls, then - at
        measured.append((answers / seconds, workers * seconds / answers, (busier - busy) / seconds, size))
    return measured


def with_errors() -> None:
    """A line for each SECONDS of a run in which every worker logs, then what came of it."""
    os.environ[ERRORS] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.txt")
        with written(logging.INFO, path, print, shown=False):
            found = measure(WORKERS[-1], times=9)
        lines = [line for line in path.read_text().splitlines() if " ERROR " in line]
        repeats = [int(times) for times in re.findall(r"\(repeated (\d+) times\)", "\n".join(lines))]
        sys.stdout.write("seconds | answers/s | cores of the driver | MB of the driver\n")
        for number, (rate, _, busy, size) in enumerate(found, 2):
            sys.stdout.write(f"{number * SECONDS:>7.0f} | {rate:>9.0f} | {busy:>19.2f} | {size:>16.1f}\n")
        told = f"{len(lines) - len(repeats)} errors written, {sum(repeats):,} counted in {len(repeats)} lines"
        sys.stdout.write(f"{told}; the log has {path.stat().st_size:,} bytes\n")


def main() -> None:
    """A line a size."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # so that Ray's processes find the crowd
    if "--errors" in sys.argv:
        with_errors()
        return
    sys.stdout.write("workers | answers/s | s between two of a worker | cores of the driver\n")
    for workers in WORKERS:
        [(rate, period, busy, _)] = measure(workers)
        sys.stdout.write(f"{workers:>7,} | {rate:>9.0f} | {period:>25.2f} | {busy:>19.2f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
