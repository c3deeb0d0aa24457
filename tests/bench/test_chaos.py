"""Whatever dies, the run ends complete: workers, nodes and drivers killed by seed, on a real Ray of several nodes."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from time import sleep

import pytest

from jobs.bench.chaos import _report
from pipeline.bench.chaos_monkey import FinishedRun, Round
from pipeline.bench.conservation import MOST_WASTED, BeginRecorder, Verdict, prove
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.job import BenchJob, write_photos
from pipeline.bench.local_cluster import private_nodes
from pipeline.documents import from_json, to_json
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("rows", "windows", "lost_workers", "windows_labelled_again", "worst_worker", "seconds")


def run_chaos(*words):
    """What `diffseg bench chaos` says, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.shared.cli", "bench", "chaos", "--json", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def expect_whole(report, code, rounds):
    assert report["broken"] == []
    assert code == 0
    assert len(report["rounds"]) == rounds
    assert report["rows"] == report["samples"] > 0
    assert report["lost"] == report["twice"] == 0
    assert report["worst_worker"] <= MOST_WASTED
    assert report["windows_labelled_again"] <= MOST_WASTED * report["lost_workers"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_whose_driver_is_killed_is_finished_by_the_same_command(tmp_path):
    words = ["--rounds", "1", "--target", "driver", "--shards", "2", "--images", "64", "--workers", "1"]
    report, code = run_chaos("--output", str(tmp_path), *words)
    expect_whole(report, code, 1)
    assert report["rows"] == 128


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["local", "s3"])
def test_twenty_rounds_of_kills_lose_nothing_double_nothing_and_blame_nobody(store, request, tmp_path, capsys):
    if store == "s3":
        request.getfixturevalue("s3")
    output = str(tmp_path) if store == "local" else "s3://bucket/chaos"
    report, code = run_chaos("--output", output, "--rounds", "20", "--seed", "7")
    expect_whole(report, code, 20)
    killed = Counter(each["target"] for each in report["rounds"])
    assert set(killed) == {"worker", "node", "driver"}
    with capsys.disabled():
        print(f"\n{store}: killed {dict(killed)}; { ({name: report[name] for name in FIGURES}) }")  # noqa: T201


def await_nodes(address, count):
    """Until so many have joined: two that start at once on one address disturb each other."""
    script = (
        "import ray, sys, time\n"
        "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)\n"
        "while sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[2]): time.sleep(0.2)"
    )
    for _ in range(20):  # the head needs some seconds
        if subprocess.run([sys.executable, "-c", script, address, str(count)], capture_output=True).returncode == 0:
            return
        sleep(1)
    raise TimeoutError(f"no {count} nodes at {address}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_somebodys_own_cluster_is_killed_through_ray_alone(tmp_path):
    with private_nodes() as nodes:
        for joined in range(1, 4):
            await_nodes(nodes.address, joined)
            nodes.add()
        await_nodes(nodes.address, 4)
        words = ["--ray-address", nodes.address, "--rounds", "2", "--target", "node"]
        report, code = run_chaos("--output", str(tmp_path), *words, "--shards", "6")
    expect_whole(report, code, 2)
    assert [each["target"] for each in report["rounds"]] == ["node", "node"]


def recording(ledger, segmenter):
    return Worker(ledger, segmenter, observer=BeginRecorder(ledger))


@pytest.fixture
def recorded(tmp_path):
    """A run of ten samples in windows of four, and a worker of it whose windows are recorded as they begin."""
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(write_shard(tmp_path / "w.tar", samples(10)))]))
    return ledger, recording(Ledger.open(ledger.store.url), FakeSegmenter(batch_size=2))


def test_a_run_without_losses_is_proven_and_wastes_nothing(recorded):
    ledger, worker = recorded
    list(worker.run(ledger.missing()))
    verdict = prove(ledger, images=10)
    assert (verdict.rows, verdict.windows, verdict.workers, verdict.wasted) == (10, 3, 1, ())
    assert list(verdict.broken(0)) == []


def test_what_a_worker_began_and_another_committed_is_counted_against_it(recorded):
    ledger, worker = recorded
    shard = next(iter(ledger.shards.values()))
    worker.committer.commit = lambda work: None  # it dies before
    list(worker.run([ShardTask(shard, 0, 1)]))
    other = recording(Ledger.open(ledger.store.url), FakeSegmenter())
    list(other.run([ShardTask(shard)]))

    verdict = prove(ledger, images=10)

    assert verdict.wasted == (2,)
    assert list(verdict.broken(1)) == []
    assert list(verdict.broken(0)) == ["2 windows were labelled again for 0 lost workers, 2 each are allowed"]


def test_no_third_window_is_begun_while_two_are_on_their_way(recorded):
    ledger, worker = recorded
    stored, commit = threading.Event(), worker.committer.commit
    worker.committer.commit = lambda work: commit(work) if stored.wait(60) else None
    running = threading.Thread(target=lambda: list(worker.run(ledger.missing())))
    running.start()

    def begun():
        return len(list(ledger.store.list("begun/")))

    while begun() < 2:
        sleep(0.01)
    sleep(0.3)
    assert begun() == 2
    stored.set()
    running.join()
    assert begun() == 3


def test_a_row_that_is_missing_too_much_or_blamed_breaks_a_law(recorded):
    ledger, _ = recorded
    shard = next(iter(ledger.shards.values()))
    rows = [LabelRecord(f"{i:04d}", shard.id, i, "poison", "killed") for i in range(4)]
    ledger.writer.commit(ShardTask(shard), 0, rows, 0, 0.0)
    laws = list(prove(ledger, images=10).broken(0))
    assert laws[0] == "6 samples have no row"
    assert "{'poison': 4}" in laws[1]
    assert "3 rows are there twice or belong to no sample" in list(prove(ledger, images=1).broken(0))


def test_three_windows_with_one_worker_are_one_too_many():
    verdict = Verdict(10, 10, 0, 0, {}, (), 3, 2, wasted=(3,))
    assert list(verdict.broken(2)) == ["a worker took 3 windows with it, at most 2 are allowed"]


@pytest.mark.parametrize(("lost", "code", "said"), [(0, 0, "0 lost, 0 twice; 1 of 3"), (1, 1, "1 samples have no row")])
def test_a_broken_law_is_told_and_is_exit_1(capsys, lost, code, said):
    verdict = Verdict(10, 10 - lost, lost, 0, {}, (), 3, 2, wasted=(1,))
    assert _report([FinishedRun(1, 0, "", (Round(1, "worker", 1, 2, 0.5),), 9.0, verdict)], json=False) == code
    assert said in capsys.readouterr().out


def test_photos_are_the_same_for_the_same_seed_and_no_two_alike(tmp_path):
    first = [Path(path).read_bytes() for path in write_photos(str(tmp_path / "a"), 2, 20, (32, 48), seed=5)]
    again = [Path(path).read_bytes() for path in write_photos(str(tmp_path / "b"), 2, 20, (32, 48), seed=5)]
    assert first == again
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "a" / "photos" / "*.tar")]))
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    assert len({row["image_sha256"] for row in ledger.rows()}) == 40


def test_a_job_travels_as_json():
    job = BenchJob(photos=("a", "b"), output="s3://b/o", workers=2, window=16, storage_faults=0.1)
    assert from_json(BenchJob, to_json(job)) == job


def test_an_unknown_target_is_one_line_and_exit_2(capsys):
    from jobs.shared import cli

    assert cli.run(["bench", "chaos", "--target", "sun"]) == 2
    assert "--target is one of worker, node, driver, got sun" in capsys.readouterr().err
