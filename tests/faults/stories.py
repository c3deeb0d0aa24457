"""Stories: a finished run's folder is edited at random, then repaired and labelled again; what came of it.

    python -m tests.faults.stories infra/benchmarks/stories.md 1000

tells so many stories, each of its own seed, and goes on where it was stopped.
"""

import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.config import RunConfig
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError, PipelineError
from pipeline.exports.export import export
from pipeline.inputs.shards import pin
from pipeline.labelling import finish
from pipeline.run.compact import compact
from pipeline.run.ledger import Ledger
from pipeline.run.repair import repair
from pipeline.storage.object_store import Store
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard

SHARDS = (10, 7, 0)  # samples
FORMAT = "coco-panoptic"
BY_HAND = re.compile("not the shard this run began|holds another run|seem to be what was changed|run.json: ")
NEVER = 1e11  # seconds of a clock by which no driver is at work


def label(folder: Path) -> tuple[str, ...]:
    """What `diffseg label` does, with the fake model in this process; the faults."""
    ledger = Ledger.start(str(folder / "run"), a_run(), pin([str(folder / "in" / "*.tar")]), any_window=True)

    def build(settings: object) -> Worker:
        return Worker(Ledger.open(ledger.store.url), FakeSegmenter(batch_size=3))

    return finish(ledger, "fake", RunConfig(workers=0), build=build).faults


def begin(folder: Path, *, compacted: bool = False) -> None:
    """A finished run of three shards."""
    for number, count in enumerate(SHARDS):
        write_shard(folder / "in" / f"s-{number}.tar", samples(count, first=100 * number))
    assert label(folder) == ()
    if compacted:
        compact(Ledger.open(str(folder / "run")))


def copy(finished: Path, folder: Path) -> None:
    """The same run, of the same shards."""
    shutil.copytree(finished / "run", folder / "run")  # with its times, by which objects are known
    (folder / "in").symlink_to(finished / "in")


def content(folder: Path) -> dict[str, bytes]:
    """Rows and an export of a run, as bytes."""
    ledger = Ledger.open(str(folder / "run"))
    shutil.rmtree(folder / "out", ignore_errors=True)
    export(ledger, str(folder / "out"), FORMAT, Selection())
    files = [path for path in (folder / "out").rglob("*") if path.is_file() and path.name != "export.json"]
    found = {str(path.relative_to(folder / "out")): path.read_bytes() for path in files}
    return found | {"rows": repr([sorted(row.items()) for row in ledger.rows()]).encode()}


def objects(run: Path) -> list[Path]:
    """Files that a story may touch."""
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.is_relative_to(run / "quarantine"))


def truncate(rng: random.Random, run: Path) -> str:
    path = rng.choice(objects(run))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])
    return f"truncate {path.relative_to(run)}"


def flip(rng: random.Random, run: Path) -> str:
    path = rng.choice(objects(run))
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data)) if data else 0
    data[at : at + 1] = bytes([(data[at] if data else 0) ^ (1 << rng.randrange(8))])
    path.write_bytes(data)
    return f"flip a bit at {at} of {path.relative_to(run)}"


def swap(rng: random.Random, run: Path) -> str:
    there = objects(run)
    one, other = rng.choice(there), rng.choice(there)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"swap {one.relative_to(run)} with {other.relative_to(run)}"


def delete(rng: random.Random, run: Path) -> str:
    path = rng.choice(objects(run))
    path.unlink()
    return f"delete {path.relative_to(run)}"


def _other_name(rng: random.Random, run: Path, path: Path) -> Path:
    """A name that is like those of a run, or none at all."""
    name = rng.choice([path.name, rng.choice(objects(run)).name])
    change = rng.choice(
        [
            lambda n: re.sub(r"\d+", lambda m: str(int(m[0]) + rng.randrange(1, 9)).zfill(len(m[0])), n, count=1),
            lambda n: n.replace(".parquet", ".r1.parquet"),
            lambda n: n + ".bak",
            lambda n: "copy of " + n,
        ]
    )
    folder = rng.choice([path.parent, rng.choice(objects(run)).parent])
    other = folder / change(name)
    return other if other != path else path.with_name(f"{path.name}.bak")


def duplicate(rng: random.Random, run: Path) -> str:
    path = rng.choice(objects(run))
    other = _other_name(rng, run, path)
    shutil.copyfile(path, other)
    return f"copy {path.relative_to(run)} to {other.relative_to(run)}"


def rename(rng: random.Random, run: Path) -> str:
    path = rng.choice(objects(run))
    other = _other_name(rng, run, path)
    path.rename(other)
    return f"rename {path.relative_to(run)} to {other.relative_to(run)}"


EDITS: tuple[Callable[[random.Random, Path], str], ...] = (truncate, flip, swap, delete, duplicate, rename)


def mend(folder: Path) -> list[str]:
    """`verify --repair` and `label`; what was done.

    A run.json or pins that no manifest proves may take a second round, or a person who removes what `label` refuses.
    """
    run, done = folder / "run", list[str]()
    for _ in range(4):
        told = [line for line, _ in repair(Store(str(run)), now=NEVER)]
        try:
            faults = label(folder)
        except ConfigError as error:
            told, faults = [*told, str(error)], (str(error),)
        done += told
        if not faults:
            break
        done += faults
        for line in filter(BY_HAND.search, told):
            done.append(f"by hand: {line}")
            (run / "run.json").unlink(missing_ok=True)
            for path in (run / "inputs").glob("*.parquet"):
                path.unlink()
            break
    return done


def tell(finished: Path, expected: dict[str, bytes], rng: random.Random) -> tuple[bool, list[str]]:
    """One story: whether it ended well, its edits, and what was done. finished: see `begin`; expected: its content."""
    with tempfile.TemporaryDirectory(prefix="stories-") as place:
        folder = Path(place)
        copy(finished, folder)
        told = [rng.choice(EDITS)(rng, folder / "run") for _ in range(rng.randrange(1, 6))]
        try:
            told += mend(folder)
            left = [f"left: {line}" for line, _ in repair(Store(str(folder / "run")), now=NEVER)]
            seen = content(folder)
        except (PipelineError, LookupError, TypeError, ValueError, OSError) as error:
            return False, [*told, f"{type(error).__name__}: {error}"]
        left += [f"differs: {name}" for name in seen.keys() | expected if seen.get(name) != expected.get(name)]
        return not left, [*told, *left]


def main(file: Path, count: int) -> None:
    """Tell stories until the file counts so many; every second one of a compacted run."""
    text = file.read_text()
    done, by_hand = (int(number) for number in re.findall(r"^(\d+) stories.*, (\d+) by hand", text, re.M)[0])
    with tempfile.TemporaryDirectory() as place:
        runs = [Path(place, name) for name in ("windows", "compacted")]
        for run in runs:
            begin(run, compacted=run.name == "compacted")
        contents = [content(run) for run in runs]
        for seed in range(done, count):
            well, told = tell(runs[seed % 2], contents[seed % 2], random.Random(seed))
            by_hand += any(line.startswith("by hand") for line in told)
            text = re.sub(r"^\d+ stories.*, \d+ by hand", f"{seed + 1} stories, {by_hand} by hand", text, flags=re.M)
            if not well:
                text += "".join([f"\nStory {seed}:\n\n", *(f"- {line}\n" for line in told)])
            file.write_text(text)
            sys.stdout.write(f"\r{seed + 1} of {count}")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
