"""The breaker: a run whose labels are worth nothing stops early, says why and names examples; a good one never does."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from diffseg.types import AttentionError
from infra.embedded.architecture import DEFAULTS, LAYOUT
from infra.embedded.checkpoints import build as random_checkpoint
from pipeline.bench.fake_model import FakeSegmenter, by_brightness
from pipeline.driver import circuit_breaker
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import WouldRepeat
from pipeline.inputs.shards import pin
from pipeline.run.ledger import Ledger
from pipeline.worker.stage_timer import MetricsSnapshot, StageTimer
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, samples, write_shard

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("ok", "failed", "single", "segments", "reason"),
    [
        (0, 499, 0, 0, None),
        (250, 250, 0, 900, None),
        (249, 251, 0, 900, "251 of the first 500 rows have no labels (251 model_nan), for example a; b; c"),
        (1000, 0, 900, 1100, None),
        (1000, 0, 901, 1100, "901 of the first 1000 label maps are one segment"),
        (1000, 0, 0, 150_000, None),
        (1000, 0, 0, 151_000, "have 151 segments each: raise the thresholds; for example d"),
    ],
)
def test_worthless_labels_stop_a_run_and_bad_data_does_not(ok, failed, single, segments, reason):
    examples = {"failed": ("a", "b", "c"), "single": ("s",), "many": ("d",)}
    made = MetricsSnapshot(Counter(ok=ok, model_nan=failed), single=single, segments=segments, examples=examples)
    if reason is None:
        circuit_breaker.check(made)
    else:
        with pytest.raises(WouldRepeat, match=re.escape(reason)):
            circuit_breaker.check(made)


def test_samples_that_kill_every_worker_stop_a_run_with_the_error_that_ended_one():
    ended = "worker 3: KeyError: 'x' (pipeline/worker/labeling.py:74)"
    with pytest.raises(WouldRepeat, match=re.escape(f"(251 poison), for example a; a worker ended with {ended}")):
        circuit_breaker.check(MetricsSnapshot(Counter(ok=249, poison=251), examples={"failed": ("a",)}), ended)
    with pytest.raises(WouldRepeat, match=r"\(251 model_nan\), for example a$"):
        circuit_breaker.check(MetricsSnapshot(Counter(ok=249, model_nan=251), examples={"failed": ("a",)}), ended)


def test_what_workers_made_adds_up_with_the_last_examples_of_each_kind():
    first, second = StageTimer(), StageTimer()
    for number in range(4):
        first.row("ok", 1, f"single {number}")
    second.row("ok", 7, "many")
    second.row("model_nan", None, "failed")

    made = MetricsSnapshot()
    made.add(first.snapshot())
    made.add(second.snapshot())

    assert made.images == {"ok": 5, "model_nan": 1}
    assert (made.single, made.segments) == (4, 11)
    assert made.examples == {"single": ("single 1", "single 2", "single 3"), "many": ("many",), "failed": ("failed",)}


class Blind(FakeSegmenter):
    """Sees one segment everywhere. Not as fast as it can: what is made between two heartbeats is made too."""

    def segment(self, images):
        sleep(0.01)
        return [by_brightness(np.zeros_like(image)) for image in images]


class Broken(FakeSegmenter):
    """Gives NaN for everything."""

    def segment(self, images):
        sleep(0.01)
        raise AttentionError("NaN", tuple(range(len(images))))


@pytest.mark.parametrize(("model", "said"), [(Blind, "are one segment"), (Broken, "have no labels")])
def test_a_run_stops_within_a_thousand_images_though_no_window_is_full(tmp_path, model, said):
    shard = write_shard(tmp_path / "in" / "w.tar", samples(1200))
    ledger = Ledger.start(str(tmp_path / "run"), a_run(window=1024), pin([str(shard)]))
    made = []

    def build():
        made.append(Worker(Ledger.open(ledger.store.url), model(batch_size=8)))
        return made[-1]

    pool = LocalPool(build)
    with pytest.raises(WouldRepeat, match=rf"{said}.*for example s?w-[0-9a-f]+ \d+.*; .*; .*"):
        drive(ledger, pool, ledger.missing(), Counters())
    pool.close()
    assert made[0].timer.rows < 1000
    assert list(ledger.windows()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "said"),
    [("random weights", "label maps are one segment"), ("a VAE of NaN", "have no labels")],
)
def test_a_model_that_is_none_is_stopped_by_the_command_within_a_thousand_images(tmp_path, broken, said):
    checkpoint = random_checkpoint(LAYOUT, seed=1)
    if broken == "a VAE of NaN":
        for weight in checkpoint.vae.parameters():
            weight.data.fill_(float("nan"))
    model = checkpoint.save(tmp_path / "model", own={**DEFAULTS, "image_size": 64})
    for number in range(2):
        content = [(f"{i:04d}", {"jpg": jpeg(i, (96, 64))}) for i in range(700)]
        write_shard(tmp_path / "in" / f"p-{number}.tar", content)
    words = [
        sys.executable,
        "-m",
        "jobs.shared.cli",
        "label",
        str(tmp_path / "in" / "p-*.tar"),
        "--output",
        str(tmp_path / "run"),
        "--model",
        str(model),
    ]

    done = subprocess.run([*words, "--workers", "0"], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 4, done.stderr
    line = next(line for line in done.stderr.splitlines() if "stopped:" in line)
    [(count, examples)] = re.findall(rf"of the first (\d+) .*{said}.*for example (.*)", line)
    assert 500 <= int(count) < 1000
    assert len(examples.split("; ")) >= 3
