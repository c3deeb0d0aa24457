"""What it takes to resume, to look at and to read a finished run of 2,000 windows: how dear it is to believe nothing.

    python -m infra.benchmarks.engine.readers FOLDER            the run is made there, once: four rows a window
    python -m infra.benchmarks.engine.readers FOLDER --s3       a copy of it on a real S3 server of this machine
    python -m infra.benchmarks.engine.readers FOLDER status ... only these readings
    PYTHONPATH=OTHER python -m infra.benchmarks.engine.readers FOLDER   by the code of another checkout

A line for each kind of reading: seconds of this process's processor and of the clock, the least of TIMES, which take
turns so that a machine's mood meets all of them.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.datasets import RunStream
from pipeline.datasets.selection import Selection
from pipeline.exports.export import export
from pipeline.labelling import finish
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import write_manifest
from pipeline.run.status import status
from pipeline.run.verify import audit
from pipeline.storage.object_store import Store
from tests.support.labelled import make_run
from tests.support.processes import servers

SHARDS, SAMPLES = 10, 800
TIMES = 3
SMALL = ["key", "shard", "index", "status", "quality"]


def a_run(folder: Path) -> str:
    """A finished run, made where there is none."""
    if not (folder / "run").exists():
        ledger = make_run(folder, [[f"{shard}-{i}" for i in range(SAMPLES)] for shard in range(SHARDS)])
        write_manifest(ledger, list(audit(ledger)))
    return str(folder / "run")


def copied(run: str) -> str:
    """The same run on the S3 server that the environment names."""
    source, place = Store(run), Store(f"s3://{servers.BUCKET}/run")
    for name, _ in source.list(""):
        place.put_new(name, source.get(name))
    ledger = Ledger.open(place.url)
    write_manifest(ledger, list(audit(ledger)))
    return place.url


def resume(run: str) -> None:
    """`label` on what is done."""
    assert finish(Ledger.open(run), "fake", RunConfig(workers=0)).idle


def look(run: str) -> None:
    """`label` on what has no manifest: which windows are missing."""
    assert not [task for task in Ledger.open(run).missing() if task.last_window is not None]


def an_export(run: str) -> None:
    """Without photos, of all rows."""
    with tempfile.TemporaryDirectory() as out:
        export(Ledger.open(run), f"{out}/x", "coco-segments", Selection(), images=False)


READINGS: dict[str, Callable[[str], object]] = {
    "label, all done": resume,
    "label, what is missing": look,
    "status": lambda run: status(Ledger.open(run)),
    "rows, small columns": lambda run: sum(1 for _ in Ledger.open(run).rows(SMALL)),
    "rows, all columns": lambda run: sum(1 for _ in Ledger.open(run).rows()),
    "export": an_export,
    "dataset": lambda run: sum(1 for _ in RunStream(run)),
}


def main() -> None:
    """A line a reading."""
    with ExitStack() as stack:
        run, only = a_run(Path(sys.argv[1])), [word for word in sys.argv[2:] if word != "--s3"]
        if "--s3" in sys.argv:
            import os

            address = stack.enter_context(servers.seaweedfs(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            os.environ |= servers.s3_environment(address)
            run = copied(run)
        least: dict[str, tuple[float, float]] = {}
        for _ in range(TIMES):
            for name, read in ((name, read) for name, read in READINGS.items() if not only or name in only):
                began, busy = time.perf_counter(), time.process_time()
                read(run)
                took = time.process_time() - busy, time.perf_counter() - began
                least[name] = min(least.get(name, took), took)
    for name, (busy, took) in least.items():
        sys.stdout.write(f"| {name} | {busy:.3f} | {took:.3f} |\n")


if __name__ == "__main__":
    main()
