"""`diffseg bench job`: the engine's share of the bare model, with everything that it is made of."""

import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.bench.job import bare
from jobs.shared.cli import run
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.job import BenchJob, TimeRecorder, recorded_times, write_photos
from pipeline.inputs.shards import pin
from pipeline.run.ledger import Ledger
from pipeline.worker.stage_timer import WORKED_ON
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard

ROOT = Path(__file__).resolve().parents[2]


def test_a_worker_s_note_tells_when_it_began_and_what_every_stage_cost(tmp_path):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(write_shard(tmp_path / "w.tar", samples(12)))]))
    began = time.time()
    list(Worker(ledger, FakeSegmenter(0.01, batch_size=4), observer=TimeRecorder(ledger)).run(ledger.missing()))

    [note] = recorded_times(ledger)

    assert began < note.began < note.ended < time.time()
    assert note.ended - note.began >= 0.12
    assert note.rows == 12
    assert note.busy_s >= 0.12
    assert set(note.cpu_s) == {*WORKED_ON, "other"}
    assert all(note.cpu_s[stage] > 0 for stage in WORKED_ON)
    assert set(note.waited_s) == {"task", "read", "decode", "commit"}


def test_the_bare_model_is_no_faster_than_it_was_set(tmp_path):
    photos = write_photos(str(tmp_path), 1, 8, (32, 48), seed=0)
    alone = bare(BenchJob(photos=photos, output="", workers=1, window=8, seconds=0.005, batch_size=8))
    assert 0 < alone <= 200


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_command_prints_one_share_for_each_speed(capsys):
    before = threading.enumerate()
    words = ["bench", "job", "--shards", "2", "--images", "16", "--seconds", "0.005", "--workers", "1"]
    assert run([*words, "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)
    assert report["images"] == 32
    assert 0 < report["efficiency"] <= 1.001
    assert report["start_s"] > 0
    assert {"read", "decode", "label", "encode", "commit", "other"} == set(report["cpu_ms"])
    assert not [new for new in threading.enumerate() if new.name == "worker" and new not in before]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="ray[data] is not installed")
def test_the_plain_ray_data_job_labels_the_same_photos():
    words = ["--seconds", "0.005", "--shards", "2", "--images", "12", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "infra/benchmarks/engine/ray_data.py", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rows"] == 24
    assert report["images_per_s"] > 0
