"""Label Studio: its run lengths, tasks with a mask and a name changed, and files that are none."""

import json

import numpy as np
import pytest

from jobs.shared import cli
from pipeline.errors import ConfigError
from pipeline.exports.label_studio import packed, unpacked
from pipeline.review.given import read_given
from tests.review.test_people import KINDS, exported, named_run, without_id

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder


@pytest.fixture
def run(tmp_path):
    return named_run(tmp_path)


def literal(rle: list[int]) -> list[int]:
    """The values of rle-pack, bit by bit."""
    bits = iter("".join(f"{each:08b}" for each in rle))

    def number(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    total, word = number(32), number(5) + 1
    lengths, values = [number(4) + 1 for _ in range(4)], list[int]()
    while len(values) < total:
        repeated = number(1)
        length = number(lengths[number(2)]) + 1
        values += [number(word)] * length if repeated else [number(word) for _ in range(length)]
    return values


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 70), (300, 500)])
def test_run_lengths_are_those_of_the_format_and_come_back(size):
    rng = np.random.default_rng(size[1])
    for mask in (rng.random(size) < 0.1, np.zeros(size, bool), np.ones(size, bool)):
        rle = packed(mask)
        assert (unpacked(rle, size) == mask).all()
        if mask.size < 5000:
            assert literal(rle) == (255 * mask.ravel().astype(int)).repeat(4).tolist()


def test_blocks_of_different_words_are_read_too():
    """As Label Studio's own packer writes them: 12 values of 8 bits, 4 literal ones, then 8 equal."""
    head = f"{12:032b}{7:05b}" + "".join(f"{each:04b}" for each in (2, 3, 7, 15))
    text = (
        head + "000" + f"{3:03b}" + "".join(f"{each:08b}" for each in (9, 9, 9, 200)) + "100" + f"{7:03b}" + f"{0:08b}"
    )
    text += "0" * (-len(text) % 8)
    rle = list(int(text, 2).to_bytes(len(text) // 8, "big"))
    assert literal(rle) == [9, 9, 9, 200, *[0] * 8]
    assert unpacked(rle, (1, 3)).tolist() == [[True, False, False]]


def tasks_of(run, folder):
    assert cli.run(["select", run, "--output", str(folder / "work"), "--format", "label-studio", *KINDS]) == 0
    return folder / "work" / "label-studio" / "tasks_train.json"


def test_a_mask_and_a_name_changed_are_in_the_next_export_and_only_they(run, tmp_path, capsys):
    file = tasks_of(run, tmp_path)
    before = exported(run, tmp_path, "before")
    tasks = json.loads(file.read_text())
    assert (file.parent / "label_config.xml").read_text().count("<Label value=") == 4
    by_key = {task["data"]["image"].split("/")[-1].split("_")[0]: task for task in tasks}
    for task in tasks:  # people accept predictions, and what they cancel counts for nothing
        task["annotations"] = [dict(task["predictions"][0]), {"result": [], "was_cancelled": True}]
        task["data"]["image"] = task["data"]["image"].replace(
            "/data/local-files/?d=images/", "/data/upload/1/0a1b2c3d-"
        )
    named = by_key["e"]["annotations"][0]["result"][0]
    cut = next(each for each in by_key["b"]["annotations"][0]["result"] if each["value"]["brushlabels"] == ["tree"])
    assert named["value"]["brushlabels"] == ["sky"]
    named["value"]["brushlabels"] = ["tree"]
    size = cut["original_height"], cut["original_width"]
    mask = unpacked(cut["value"]["rle"], size).copy()
    pixels = np.flatnonzero(mask)
    mask.ravel()[pixels[: len(pixels) // 2]] = False
    cut["value"]["rle"] = packed(mask)
    file.write_text(json.dumps(tasks))

    assert cli.run(["import", run, str(file), *KINDS]) == 0

    after = exported(run, tmp_path, "after")
    for key in before.keys() - set("be"):
        assert [without_id(each) for each in after[key][1]] == [without_id(each) for each in before[key][1]]
    changed = [each for each in after["b"][1] if without_id(each) not in map(without_id, before["b"][1])]
    assert sum(each["area"] for each in changed) == mask.sum()
    renamed = [each for each in after["e"][1] if without_id(each) not in map(without_id, before["e"][1])]
    assert {each["category_id"] for each in renamed} == {2}
    assert "2 images" in capsys.readouterr().out


def test_a_polygon_in_per_cent_is_a_mask_and_a_later_region_covers_it(tmp_path):
    def region(kind, value):
        return {"type": kind, "original_width": 20, "original_height": 10, "value": {kind: ["a"], **value}}

    square = np.zeros((10, 20), bool)
    square[4:6, 8:12] = True
    points = [[0, 0], [100, 0], [100, 100], [0, 100]]
    regions = [region("polygonlabels", {"points": points}), region("brushlabels", {"rle": packed(square)})]
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"data": {"image": "x.png"}, "annotations": [{"result": regions}]}]))
    [given] = read_given(str(file))
    assert (given.label_map == square.astype(int)).all()
    assert given.categories == ("a", "a")


def task(**changes):
    region = {
        "type": "brushlabels",
        "original_width": 5,
        "original_height": 3,
        "value": {"brushlabels": ["a"], "rle": packed(np.eye(3, 5) > 0)},
    }
    return [{"data": {"image": "x.png"}, "annotations": [{"result": [{**region, **changes}]}]}]


@pytest.mark.parametrize(
    "document",
    [
        task(value={"brushlabels": ["a"], "rle": packed(np.ones((3, 4), bool))}),
        task(value={"brushlabels": ["a"], "rle": packed(np.ones((3, 5), bool))[:8]}),
        task(value={"brushlabels": ["a"], "rle": [0] * 100_000}),
        task(value={"brushlabels": ["a"], "rle": [256, -1]}),
        task(value={"brushlabels": ["a"], "rle": "AAAA"}),
        task(value={"brushlabels": ["a"], "rle": []}),
        task(value={"brushlabels": [], "rle": packed(np.ones((3, 5), bool))}),
        task(type="rectanglelabels", value={"rectanglelabels": ["a"], "x": 0}),
        task(type="polygonlabels", value={"polygonlabels": ["a"], "points": [[0, 0], [1e9, 0], [0, "x"]]}),
        task(type=None),
        task(original_width=10**9),
        task(original_width=-1),
        task(original_height="three"),
        [{"data": {}, "annotations": [{"result": []}]}],
        [{"data": {"image": 5}}],
        [None],
        ["text"],
        [[]],
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, document):
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as refusal:
        list(read_given(str(file)))
    assert "\n" not in str(refusal.value)
    assert str(file) in str(refusal.value)


def test_damaged_run_lengths_are_a_mask_or_refused():
    rng, whole, refused = np.random.default_rng(0), packed(np.eye(30, 20) > 0), list[str]()
    for _ in range(2000):
        rle = list(whole)
        for _ in range(rng.integers(1, 4)):
            rle[rng.integers(4, len(rle))] = int(rng.integers(0, 256))
        try:
            assert unpacked(rle, (30, 20)).shape == (30, 20)
        except ValueError as error:
            refused.append(str(error))
    assert 100 < len(refused) < 2000
    assert all("run lengths" in line for line in refused)
