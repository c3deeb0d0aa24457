"""diffseg calibrate: from a few labelled scenes to predicted IoUs of a whole run, end to end."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.scenes.scene import draw_scene
from jobs.shared import cli
from pipeline.derived.joined import DerivedTable
from pipeline.derived.note import read_note
from pipeline.messages import ShardTask
from pipeline.run.ledger import Ledger
from tests.support.labelled import make_run, record

KEYS = (tuple(f"a{i}" for i in range(10)), tuple(f"b{i}" for i in range(6)))
LABELLED = 8  # of the first shard


@cache
def truth_of(number: int) -> np.ndarray:
    return draw_scene(np.random.default_rng([5, number]), (72, 96)).truth


def labels(number: int) -> np.ndarray:
    """The truth of a scene with four squares across its regions; `record` gives later ids, so these, lower scores."""
    found, random = truth_of(number).copy(), np.random.default_rng(number)
    first = int(found.max()) + 1
    for square in range(4):
        y, x = random.integers(0, 60), random.integers(0, 80)
        found[y : y + 12, x : x + 14] = first + square
    ids = np.unique(found)
    return np.searchsorted(ids, found).astype(np.int32)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A run of scenes, and truth for some of them in a folder beside it."""
    truth = tmp_path / "truth"
    truth.mkdir()
    for number in range(LABELLED):
        Image.fromarray(truth_of(number).astype(np.uint8)).save(truth / f"a{number}.png")
    return make_run(tmp_path, KEYS, labels=labels)


def run(ledger: Ledger, *arguments: str) -> int:
    return cli.run(["calibrate", str(ledger), *arguments])


def predicted(ledger: Ledger, table: str = "iou") -> dict[tuple[str, int], list[Any]]:
    rows = DerivedTable(ledger, table, ["predicted_iou"]).join(ledger.rows(["shard", "index", "segments"]))
    return {(row["shard"], row["index"]): [s["predicted_iou"] for s in row["segments"] or ()] for row in rows}


def test_a_few_labelled_scenes_predict_the_iou_of_all_segments(ledger, capsys):
    assert run(ledger, "--truth", str(ledger.store.url.replace("/run", "/truth")), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["table"], told["images"], told["windows"]) == ("iou/1", LABELLED, 5)
    assert told["auroc"] > 0.9
    assert told["error"] < 0.2
    found = predicted(ledger)
    assert {len(values) for values in found.values()} == {
        len(np.unique(labels(i))) for i in [*range(10), *range(100, 106)]
    }
    right = [values[0] for values in found.values()]
    wrong = [values[-1] for values in found.values()]
    assert np.mean(right) > np.mean(wrong) + 0.3
    assert all(0 <= value <= 1 for values in found.values() for value in values)


def test_the_note_says_what_it_was_fitted_to(ledger, tmp_path, capsys):
    assert run(ledger, "--truth", str(tmp_path / "truth"), "--name", "mine") == 0
    assert "fitted to" in capsys.readouterr().out
    note, _ = read_note(ledger, "mine")
    assert note.command == f"diffseg calibrate {ledger} --name mine"
    assert note.parameters["images"] == LABELLED
    assert len(note.parameters["truth_sha256"]) == 64
    path = tmp_path / "truth" / "a0.png"
    Image.open(path).point(lambda value: value + 1).save(path)
    run(ledger, "--truth", str(tmp_path / "truth"), "--name", "mine")
    assert read_note(ledger, "mine")[0].parameters["truth_sha256"] != note.parameters["truth_sha256"]


def test_new_windows_are_taken_in_by_the_same_fit_without_truth(ledger, tmp_path, capsys):
    run(ledger, "--truth", str(tmp_path / "truth"))
    before = predicted(ledger)
    shard = list(ledger.shards.values())[1]
    rows = [record(f"b{i}", shard.id, i, labels(40 + i)) for i in (4, 5)]
    ledger.writer.commit(ShardTask(shard, 1, 1, 1), 1, rows, 0, 0.0)
    grown = Ledger.open(str(ledger.store))
    assert set(predicted(grown)[shard.id, 4]) == {None}
    capsys.readouterr()
    assert run(grown, "--extend") == 0
    assert "iou/2: 1 windows taken in, by the fit to 8 images" in capsys.readouterr().out
    after = predicted(grown)
    assert None not in after[shard.id, 4]
    assert {k: v for k, v in after.items() if k not in {(shard.id, 4), (shard.id, 5)}} == {
        k: v for k, v in before.items() if k not in {(shard.id, 4), (shard.id, 5)}
    }


def test_images_that_cannot_be_used_are_named(ledger, tmp_path, capsys):
    Image.fromarray(np.zeros((10, 96), np.uint8)).save(tmp_path / "truth" / "a3.png")
    Image.fromarray(np.full((72, 96), 9, np.uint8)).save(tmp_path / "truth" / "a4.png")
    Image.fromarray(np.zeros((72, 96), np.uint8)).save(tmp_path / "truth" / "elsewhere.png")
    assert run(ledger, "--truth", str(tmp_path / "truth"), "--ignore", "9", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == LABELLED - 2
    assert [line.partition(":")[0] for line in told["left_out"]] == ["a3", "a4", "elsewhere"]


def test_an_image_of_one_segment_tells_nothing_apart_and_is_not_fitted_to(tmp_path, ledger, capsys):
    single = make_run(tmp_path / "single", KEYS, labels=lambda number: labels(number) * (number % 2))
    assert run(single, "--truth", str(tmp_path / "truth"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == LABELLED // 2
    assert {line.partition(": ")[2] for line in told["left_out"]} == {"one segment, which tells nothing apart"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "name one of them"),
        (("--truth", "TRUTH", "--extend"), "name one of them"),
        (("--extend",), "no derived table 'iou'"),
        (("--truth", "TRUTH", "--name", "My fit"), "a name has small letters"),
        (("--truth", "OTHERS"), "has none of the 1 keys of the truth: keys are like 'a0' here and like 'z' there"),
        (("--truth", "ONE"), "two images with truth are needed at least, 1 can be used"),
    ],
)
def test_what_cannot_be_done_is_one_line(ledger, tmp_path, capsys, arguments, line):
    for folder, key in (("others", "z"), ("one", "a1")):
        (tmp_path / folder).mkdir()
        Image.fromarray(truth_of(1).astype(np.uint8)).save(tmp_path / folder / f"{key}.png")
    places = {name: str(tmp_path / name.lower()) for name in ("TRUTH", "OTHERS", "ONE")}
    assert run(ledger, *(places.get(each, each) for each in arguments)) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told


def test_a_table_of_another_command_is_not_extended(ledger, capsys):
    ledger.store.put_new("derived/iou/1/note.json", b'{"command": "diffseg track", "version": "1", "columns": {}}')
    assert run(ledger, "--extend") == 2
    assert "that this version's calibrate did not make" in capsys.readouterr().err
