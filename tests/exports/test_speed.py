"""Images a second of every format on real photos, and memory that does not grow with their number."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.exports.export import FORMATS
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import ImageSample
from pipeline.run.ledger import Ledger
from tests.support import labelled
from tests.support.labelled import make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"),
]

EXPORT = r"""
import json, re, sys, time
from pipeline.exports.export import export
from pipeline.datasets.samples import Selection
from pipeline.run.ledger import Ledger
began = time.perf_counter()
done = export(Ledger.open(sys.argv[1]), sys.argv[2], sys.argv[3], Selection())
seconds, images = time.perf_counter() - began, done.state.tally.images
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())  # getrusage counts the parent's too
print(json.dumps([images, seconds, int(peak[1]) // 1024]))
"""


def exported(run: Ledger, folder: Path, kind: str) -> tuple[int, float, int]:
    """Images, seconds and MB at most, of a process of its own."""
    command = [sys.executable, "-c", EXPORT, str(run), str(folder / kind), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    images, seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return images, seconds, memory


def test_images_a_second_of_every_format(photos, tmp_path, capsys):
    """200 photos of 481 x 321 with random labels of the same size."""
    folder, labels = tmp_path / "made", labelled.label_map(0).repeat(35, 0).repeat(40, 1)[:321, :481]
    made = make_run(folder, [["a"]])
    run = Ledger.start(str(tmp_path / "run"), made.run, pin([str(photos / "bsds-train-*.tar")]))
    _commit_all(run, labels)
    with capsys.disabled():
        for kind in FORMATS:
            images, seconds, memory = exported(run, tmp_path, kind)
            print(f"\n{kind:14} {images} images, {images / seconds:6.1f} images/s, {memory} MB", end="")  # noqa: T201
            assert images == 200


def _commit_all(run: Ledger, labels: np.ndarray) -> None:
    for shard in run.shards.values():
        rows = []
        for raw in read_shard(shard, whole=False):
            decoded = decode_sample(raw, shard.reader)
            assert isinstance(decoded, ImageSample)
            height, width = decoded.image.shape[:2]
            upright = labels if height < width else labels.T
            row = labelled.record(raw.key, shard.id, raw.index, upright)
            rows.append(replace(row, width=width, height=height))
        for window in range(-(-len(rows) // run.run.window)):
            at = slice(window * run.run.window, (window + 1) * run.run.window)
            run.writer.commit(ShardTask(shard), window, rows[at], 0, 0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Ledger]:
    """200 and 20,000 synthetic rows, in windows of 1,024."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "WINDOW", 1024)
        return {
            rows: make_run(
                tmp_path_factory.mktemp(f"rows-{rows}"), [[f"{s}-{i}" for i in range(size)] for s in range(10)]
            )
            for rows, size in ((200, 20), (20_000, 2000))
        }


@pytest.mark.parametrize("kind", FORMATS)
def test_memory_does_not_grow_with_the_number_of_samples(runs, tmp_path, capsys, kind):
    found = {rows: exported(run, tmp_path / str(rows), kind) for rows, run in runs.items()}

    few, many = (memory for _, _, memory in found.values())
    with capsys.disabled():
        speed = found[20_000][0] / found[20_000][1]
        print(f"\n{kind:14} {few} MB at 200 rows, {many} MB at 20,000 ({speed:,.0f} images/s)", end="")  # noqa: T201
    assert many < few + 60, "what a window's rows and a document's parts take, not what a sample does"
