"""What a window costs the driver: time and resident memory, with workers that do nothing but say that it is done.

    python infra/benchmarks/engine/driver.py

Every size runs in a process of its own: a run is begun with as many pinned shards as it takes, its inputs are read back
from storage, and every window goes through the driver. Then the run is resumed from its listing.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffseg.config import ResolvedConfig
from pipeline.driver.loop import drive
from pipeline.driver.pool import Capacity
from pipeline.driver.progress import Counters
from pipeline.errors import RayLost
from pipeline.messages import Orders, Outcome, Receipt, ShardTask, TaskDone
from pipeline.records import Shard
from pipeline.run.layout import end_name, window_name
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.worker.host import Report

SIZES = (1_000, 10_000, 100_000)
WINDOWS_A_SHARD = (1, 10)
WORKERS = 32
WARM = 1_000  # windows of a run that goes first: what any run takes once, whatever its size, is there before the count


class NullPool:
    """Workers that are done at once. windows: of each shard."""

    workers = WORKERS

    def __init__(self, windows: int) -> None:
        self._windows = windows

    def capacity(self) -> Capacity:
        """It has as many workers as it has."""
        return Capacity(WORKERS)

    def exchange(self, orders: Orders) -> dict[str, Report]:
        """All tasks that are handed over are done."""
        return {name: Report(tuple(self._done(tasks)), 1024, True, 0.0) for name, tasks in orders.ask.items()}

    def _done(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        for task in tasks:
            for window in range(self._windows):
                yield Receipt(task.shard.id, window, 1024, (), 1 << 20, 1.0)
            yield TaskDone(task, self._windows, ended=True)

    def restart(self, lost: RayLost) -> None:
        """There is no Ray here."""
        raise lost

    def close(self) -> None:
        """There is nothing to be left behind."""


def resident() -> int:
    """Bytes this process has in memory now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def a_run(folder: str, windows: int, per_shard: int) -> None:
    """Pin shards named as they are on an object store."""
    segment = ResolvedConfig(thresholds=(1.0,), timestep=0, image_size=512, dtype="float32")
    run = Run.of(segment, "0", model="null", revision=None)
    shards = [
        Shard(f"train-{n:06}-{n:012x}", f"s3://bucket/photos/train-{n:06}.tar", 1 << 30, f'"{n:032x}"')
        for n in range(windows // per_shard)
    ]
    Ledger.start(folder, run, shards)


def commit_all(folder: str, per_shard: int) -> None:
    """Empty objects under the names of windows and ends: a listing sees no more."""
    labels = Path(folder, "labels")
    labels.mkdir()
    for shard in Ledger.open(folder).shards:
        for window in range(per_shard):
            Path(folder, window_name(shard, window)).touch()
        Path(folder, end_name(shard)).touch()


def measure(windows: int, per_shard: int) -> dict:
    """One size, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "begin", folder, str(windows), str(per_shard)], check=True)
        warm = Path(folder, "warm")
        a_run(str(warm), WARM, per_shard)
        drive(Ledger.open(str(warm)), NullPool(per_shard), Ledger.open(str(warm)).unfinished(), Counters())
        before = resident()
        ledger, tally, most = Ledger.open(folder), Counters(), 0
        tasks = ledger.unfinished()
        began = time.perf_counter()
        looked = 0.0

        def tick() -> None:
            nonlocal most, looked
            if time.perf_counter() > looked + 0.2:
                most, looked = max(most, resident()), time.perf_counter()

        most = resident()
        drive(ledger, NullPool(per_shard), tasks, tally, tick=tick)
        spent = time.perf_counter() - began
        assert tally.windows == windows
        most = max(most, resident())
        commit_all(folder, per_shard)
        began = time.perf_counter()
        left = list(Ledger.open(folder).unfinished())
        resumed = time.perf_counter() - began
        assert not left
        return {"us": 1e6 * spent / windows, "bytes": (most - before) / windows, "resume_s": resumed}


def main() -> None:
    """A line a size."""
    if sys.argv[1:2] == ["begin"]:
        a_run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    if sys.argv[1:2] == ["one"]:
        sys.stdout.write(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return
    say("windows | windows a shard | us a window | resident bytes a window | resume from a listing")
    for per_shard in WINDOWS_A_SHARD:
        for windows in SIZES:
            command = [sys.executable, __file__, "one", str(windows), str(per_shard)]
            got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            figures = f"{got['us']:>11.1f} | {got['bytes']:>23.0f} | {got['resume_s']:.2f} s"
            say(f"{windows:>7,} | {per_shard:>15} | {figures}")


def say(line: str) -> None:
    """A line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
