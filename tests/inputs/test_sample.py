"""A sample of a run: the same for the same seed, fair to every window, and a run like any other."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.shared import cli
from pipeline import labelling
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs import tasks as sample
from pipeline.inputs.count import Counts, count
from pipeline.inputs.tasks import draw, within
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.ledger import Ledger
from pipeline.worker.worker import Worker
from tests.conftest import samples, write_shard

COUNTS = {"a": 100, "b": 35, "c": 0, "d": 1000}
SHARD = Shard("a", "file:///a.tar", 1, "1")


def held(drawn, counts, window):
    return sum(min(window, counts[shard] - number * window) for shard, numbers in drawn.items() for number in numbers)


@given(st.integers(1, 2000), st.integers(0, 5), st.integers(1, 64))
def test_a_sample_holds_what_was_asked_and_no_window_more(images, seed, window):
    drawn = draw(COUNTS, window, images, seed)
    total = sum(COUNTS.values())
    assert min(images, total) <= held(drawn, COUNTS, window) < min(images, total) + window
    for shard, numbers in drawn.items():
        assert numbers <= set(range(-(-COUNTS[shard] // window)))


def test_a_larger_sample_of_the_same_seed_holds_the_smaller_one():
    small, large = draw(COUNTS, 10, 100, 7), draw(COUNTS, 10, 900, 7)
    assert all(numbers <= large[shard] for shard, numbers in small.items())


def test_other_seeds_draw_other_windows():
    assert draw(COUNTS, 10, 100, 1) == draw(COUNTS, 10, 100, 1)
    assert draw(COUNTS, 10, 100, 1) != draw(COUNTS, 10, 100, 2)


def test_every_window_is_drawn_as_often_as_any_other():
    often = Counter(
        (shard, number)
        for seed in range(2000)
        for shard, numbers in draw({"a": 40, "b": 20, "c": 40}, 10, 20, seed).items()
        for number in numbers
    )
    assert len(often) == 10
    assert min(often.values()) > 320  # two of ten windows each time: 400 expected, with a deviation of 18
    assert max(often.values()) < 480


@pytest.mark.parametrize(
    ("task", "windows", "parts"),
    [
        (ShardTask(SHARD), {0, 1, 4}, [(0, 1), (4, 4)]),
        (ShardTask(SHARD, 1, 3), {0, 1, 3, 4}, [(1, 1), (3, 3)]),
        (ShardTask(SHARD, 2), {0, 1}, []),
        (ShardTask(Shard("z", "file:///z.tar", 1, "1")), {0}, []),
    ],
)
def test_tasks_are_cut_down_to_the_windows_of_the_sample(task, windows, parts):
    assert [(part.first_window, part.last_window) for part in within([task], {"a": windows})] == parts


@pytest.fixture
def inputs(tmp_path):
    """Three shards of 12, 9 and 12 photos that the fake model labels, in windows of four when labelled."""
    for number, size in enumerate((12, 9, 12)):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(size))
    return str(tmp_path / "in" / "s-*.tar")


@pytest.fixture
def label(inputs, tmp_path, monkeypatch):
    """Runs `diffseg label` with a fake model in place of the embedded one."""
    monkeypatch.setattr(labelling, "build_worker", fake_worker)

    def run(*more, output="run"):
        arguments = ["label", inputs, "--output", str(tmp_path / output), "--model", "tiny", "--workers", "0"]
        return cli.run([*arguments, "--window", "4", *more])

    return run


def fake_worker(settings):
    return Worker(Ledger.open(settings.output), FakeSegmenter(batch_size=2))


def windows_of(output):
    return sorted(path.name for path in (output / "labels").glob("*.parquet"))


def test_a_sample_is_labelled_resumed_grown_and_finished_on_one_output(label, tmp_path, capsys):
    assert label("--sample", "8", "--seed", "3") == 0
    said = capsys.readouterr().out
    assert "sample complete: " in said
    assert "without --sample labels the rest" in said
    first = windows_of(tmp_path / "run")
    assert 2 <= len(first) <= 3
    assert cli.run(["verify", str(tmp_path / "run")]) == 1  # what is missing is missing, and said
    capsys.readouterr()

    assert label("--sample", "8", "--seed", "3", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["idle"], again["complete"], again["sampled"]) == (True, False, True)
    assert windows_of(tmp_path / "run") == first

    assert label("--sample", "20", "--seed", "3") == 0
    grown = windows_of(tmp_path / "run")
    assert set(first) < set(grown)

    assert label() == 0
    assert "complete: 33 rows, 33 ok" in capsys.readouterr().out
    assert set(grown) < set(windows_of(tmp_path / "run"))
    assert cli.run(["verify", str(tmp_path / "run"), "--full"]) == 0


def test_a_sample_is_the_same_on_another_output(label, tmp_path):
    label("--sample", "9", "--seed", "5")
    label("--sample", "9", "--seed", "5", output="other")
    assert windows_of(tmp_path / "run") == windows_of(tmp_path / "other")


def test_rows_of_a_sample_are_those_of_the_whole_run(label, tmp_path):
    label("--sample", "9")
    label(output="whole")
    whole = {(row["shard"], row["index"]): row for row in Ledger.open(str(tmp_path / "whole")).rows()}
    rows = list(Ledger.open(str(tmp_path / "run")).rows())
    assert len(rows) >= 9
    assert all(whole[row["shard"], row["index"]] == row for row in rows)


def test_a_sample_of_more_than_there_is_is_a_whole_run(label, capsys):
    assert label("--sample", "100") == 0
    said = capsys.readouterr().out
    assert said.startswith("complete: 33 rows")
    assert "--sample" not in said


def test_a_window_that_was_estimated_and_is_not_there_ends_the_run_all_the_same(label, tmp_path, monkeypatch, capsys):
    def inflated(shards, image_key):
        return Counts({shard: size + 40 for shard, size in count(shards, image_key).samples.items()}, exact=False)

    monkeypatch.setattr(sample, "count", inflated)
    assert label("--sample", "140") == 0
    assert "sample complete: " in capsys.readouterr().out
    assert label() == 0
    assert cli.run(["verify", str(tmp_path / "run"), "--full"]) == 0


def test_a_damaged_shard_in_a_sample_is_exit_3(label, tmp_path):
    path = tmp_path / "in" / "s-0.tar"
    path.write_bytes(path.read_bytes()[:-11000])
    assert label("--sample", "30") == 3


def test_a_sample_of_nothing_is_refused(label, capsys):
    assert label("--sample", "0") == 2
    assert "--sample" in capsys.readouterr().err
