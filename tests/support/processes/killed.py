"""A process that dies at a chosen step of a run, and another that finishes it.

`python killed.py PLACE [POINT...]` kills a run at each of these points (or at every one) and prints, one line of JSON
a point, what the next run made of it. PLACE is a folder or the URL of a prefix that holds inputs and output. Children
are forked from one process that has imported everything and started no thread.
"""

import json
import os
import sys

import pyarrow
import s3fs  # noqa: F401 - so that no child has to

from pipeline import table
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs import decode, reader
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.run import manifest, verify
from pipeline.run.commit import RunWriter
from pipeline.run.ledger import Ledger
from pipeline.storage import filesystem, object_store
from pipeline.storage.object_store import Store
from pipeline.storage.ranged_reader import RangedReader
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples

COUNTS = (10, 7, 0, 4)  # samples of each shard; four a window
KILLED = 9
POINTS = {  # where a run can be killed: whose attribute, before or after the call, and at which call
    "before run.json": (Store, "put_new", "before", 1),
    "after run.json": (Store, "put_new", "after", 1),
    "at the probe": (Store, "put_new", "before", 2),
    "before the inputs are pinned": (Store, "put_new", "before", 3),
    "after the inputs are pinned": (Store, "put_new", "after", 3),
    "opening a shard": (filesystem, "open_ranged", "before", 1),
    "opening the second shard": (filesystem, "open_ranged", "after", 2),
    "reading a range": (RangedReader, "_get", "after", 1),
    "looking whether a shard changed": (reader, "_same_version", "before", 3),
    "decoding": (decode, "decode_reduced", "before", 6),
    "labelling": (FakeSegmenter, "segment", "before", 1),
    "labelling a later batch": (FakeSegmenter, "segment", "after", 3),
    "encoding a window": (table, "encode_window", "before", 1),
    "after encoding a window": (table, "encode_window", "after", 2),
    "before the end of a shard": (RunWriter, "commit_end", "before", 1),
    "after the end of a shard": (RunWriter, "commit_end", "after", 1),
    "after the end of the last shard": (RunWriter, "commit_end", "after", 4),
    "before the audit": (verify, "audit", "before", 1),
    "before the manifest": (manifest, "write_manifest", "before", 1),
    "between the manifest and its mark": (Store, "put_new", "before", 15),
    "after the manifest": (manifest, "write_manifest", "after", 1),
}
ON_A_DISK = {
    "before a draft is written": (Store, "_draft", "before", 4),
    "before a draft is on the disk": (os, "fsync", "before", 8),
    "after a draft is on the disk": (Store, "_link", "before", 4),
    "before the first window has its name": (os, "link", "before", 4),
    "after the first window has its name": (os, "link", "after", 4),
    "after its folder is on the disk": (object_store, "_sync", "after", 4),
    "before a later window has its name": (os, "link", "before", 6),
    "after a later window has its name": (os, "link", "after", 6),
}
IN_A_BUCKET = {
    "before the first window is put": (Store, "_create", "before", 4),
    "after the first window is put": (Store, "_create", "after", 4),
    "before a later window is put": (Store, "_create", "before", 6),
    "after a later window is put": (Store, "_create", "after", 6),
    "before an end is put": (Store, "_create", "before", 7),
    "after an end is put": (Store, "_create", "after", 7),
}


def points(place: str) -> dict[str, tuple[object, str, str, int]]:
    """Every point there is on this kind of storage."""
    return {**POINTS, **(IN_A_BUCKET if "://" in place else ON_A_DISK)}


def arm(place: object, name: str, when: str, nth: int) -> None:
    """End this process at the nth call of a function."""
    call, left = getattr(place, name), [nth]

    def armed(*args, **kwargs):
        left[0] -= 1
        if when == "before" and left[0] == 0:
            os._exit(KILLED)
        result = call(*args, **kwargs)
        if left[0] == 0:
            os._exit(KILLED)
        return result

    setattr(place, name, armed)


def lay_out(place: str) -> None:
    """The inputs of a run."""
    for shard, count in enumerate(COUNTS):
        Store(place).replace(f"in/s-{shard}.tar", write_samples(samples(count, first=100 * shard)))


def run(place: str) -> None:
    """Begin the run, or finish it."""
    ledger = Ledger.start(f"{place}/run", a_run(), pin([f"{place}/in/*.tar"]))
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.unfinished()))
    manifest.write_manifest(ledger, list(verify.audit(ledger)))


def examine(place: str) -> dict[str, object]:
    """What stands there after a run that was not killed."""
    ledger = Ledger.open(f"{place}/run")
    faults = [fault for shard in verify.audit(ledger, full=True) for fault in shard.faults]
    rows = [(row["shard"], row["index"]) for row in ledger.rows(["shard", "index"])]
    missing = [task.first_window for task in ledger.missing()]
    return {"rows": len(rows), "once": len(set(rows)) == len(rows), "faults": faults, "missing": missing}


def in_child(step) -> int:
    """Do a step in a process of its own; its exit code."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        step()
        os._exit(0)
    finally:
        os._exit(1)


def report(place: str, *so_far: object) -> None:
    """One line."""
    point, died, finished = so_far
    found = examine(place)
    sys.stdout.write(json.dumps({"point": point, "died": died, "finished": finished, **found}) + "\n")
    sys.stdout.flush()


def main(root: str, chosen: list[str]) -> None:
    """One point after another."""
    pyarrow.set_cpu_count(1)
    for number, point in enumerate(chosen or points(root)):
        place, what = f"{root}/{number}", points(root)[point]

        def die(place=place, what=what):
            arm(*what)
            run(place)

        in_child(lambda place=place: lay_out(place))
        died = in_child(die)
        finished = in_child(lambda place=place: run(place))
        in_child(lambda so_far=(place, point, died, finished): report(*so_far))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
