"""Every reader of a run with a calibration and with categories, against the tables joined by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffseg.cut import Cut
from jobs.shared import cli
from pipeline.datasets import Example, RunDataset, RunStream
from pipeline.derived.joined import open_run
from pipeline.derived.note import Note, write
from pipeline.errors import ConfigError
from pipeline.messages import ShardTask
from pipeline.run.ledger import Ledger
from pipeline.table.filter import parse_filter
from tests.support.labelled import label_map, make_run, record

KEYS = (tuple("abcdef"), tuple("ghi"))
FAILED = {(0, 2): "undecodable"}
LABELLED = "abdefghi"


def iou(index: int, segment: int) -> float:
    """What the table predicts: other numbers than the scores, in another order."""
    return (index % 3 + 1) * (segment + 1) / 16


def predict(ledger: Ledger, name: str = "mine") -> None:
    def values(window):
        for row in ledger.rows(["index", "shard", "segments"], windows=[window]):
            for each in row["segments"] or ():
                found = {"predicted_iou": iou(row["index"], each["id"])}
                yield {"index": row["index"], "segment": each["id"]} | found

    cut = str(ledger.cut) if ledger.cut else None
    write(ledger, name, Note(command="diffseg calibrate RUN", columns={"predicted_iou": "float32"}, cut=cut), values)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with a table; its sample b is one segment."""
    ledger = make_run(tmp_path, KEYS, failed=FAILED, labels=lambda n: label_map(n, 1) if n == 1 else label_map(n))
    predict(ledger)
    return str(ledger.store)


def wanted(row: Any) -> Any:
    """The quality of a row as it is read, by hand from its segments."""
    areas = [each["area"] for each in row["segments"]]
    if len(areas) < 2:
        return None
    return sum(a * iou(row["index"], n) for n, a in enumerate(areas)) / sum(areas)


def test_scores_and_quality_are_what_the_table_predicts(run):
    for row in open_run(run, calibration="mine").rows(["key", "quality", "segments"]):
        assert [each["score"] for each in row["segments"] or ()] == [
            pytest.approx(iou(row["index"], each["id"])) for each in row["segments"] or ()
        ]
        assert row["quality"] == (pytest.approx(wanted(row)) if row["segments"] and wanted(row) else None)
        assert row["predicted_iou"] == row["quality"]


def test_what_is_stored_and_other_columns_are_as_they_were(run):
    plain, calibrated = Ledger.open(run), open_run(run, calibration="mine")
    assert list(calibrated.rows(["key", "width"])) == list(plain.rows(["key", "width"]))
    assert list(calibrated.rows(stored=True)) == list(plain.rows(stored=True))
    assert list(open_run(run).rows()) == list(plain.rows())


@pytest.mark.parametrize(
    "where", ["predicted_iou > 0.3", "quality < 0.3 or key == 'b'", "predicted_iou > 0.2 and width > 3", "index > 1"]
)
def test_a_condition_is_one_on_what_is_predicted(run, tmp_path, where):
    rows = [row for row in open_run(run, calibration="mine").rows() if row["status"] == "ok"]
    keys = {
        "predicted_iou > 0.3": {r["key"] for r in rows if (wanted(r) or 0) > 0.3},
        "quality < 0.3 or key == 'b'": {r["key"] for r in rows if r["key"] == "b" or (wanted(r) or 1) < 0.3},
        "predicted_iou > 0.2 and width > 3": {r["key"] for r in rows if (wanted(r) or 0) > 0.2},
        "index > 1": {r["key"] for r in rows if r["index"] > 1},
    }[where]
    assert keys < set(LABELLED)
    export = ["export", run, "--format", "png", "--output", str(tmp_path / "out"), "--where", where]
    assert cli.run([*export, "--calibration", "mine"]) == 0
    assert {path.stem for path in (tmp_path / "out").rglob("*.png")} == keys
    dataset: RunDataset[Example] = RunDataset(run, where=where, calibration="mine")
    stream: RunStream[Example] = RunStream(run, where=where, calibration="mine")
    assert {dataset[number].key for number in range(len(dataset))} == keys
    assert {example.key for example in stream} == keys


def test_exports_have_predicted_scores_and_leave_out_segments_by_them(run, tmp_path):
    out = tmp_path / "out"
    export = ["export", run, "--format", "coco-panoptic", "--output", str(out), "--min-score", "0.3"]
    assert cli.run([*export, "--calibration", "mine"]) == 0
    document = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    found = {image["id"]: image["key"] for image in document["images"]}
    index = {key: at for keys in KEYS for at, key in enumerate(keys)}
    for each in document["annotations"]:
        of = index[found[each["image_id"]]]
        scores = [info["score"] for info in each["segments_info"]]
        every = [iou(of, n) for n in range(1 if found[each["image_id"]] == "b" else 5)]
        assert scores == [pytest.approx(score) for score in every if score >= 0.3]
    assert json.loads((out / "export.json").read_text())["calibration"] == "mine/1"


def test_an_export_goes_on_with_the_revision_it_began_with(run, tmp_path, capsys):
    export = ["export", run, "--format", "png", "--output", str(tmp_path / "out")]
    assert cli.run([*export, "--calibration", "mine"]) == 0
    predict(Ledger.open(run))
    assert cli.run([*export, "--calibration", "mine"]) == 2
    assert "calibration: mine/1 there, mine/2 here" in capsys.readouterr().err
    assert cli.run([*export, "--calibration", "mine/1"]) == 0
    assert cli.run(export) == 2


def test_the_gallery_is_sorted_by_it_and_says_so_and_one_segment_heads_no_list(run, tmp_path):
    assert cli.run(["preview", run, "--output", str(tmp_path / "page.html"), "--calibration", "mine"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert '["scores","IoU predicted by mine/1"]' in page
    assert '"quality":null,"count":1' in page
    assert page.count('"quality":null') == 1


def test_status_counts_predicted_qualities(run, capsys):
    assert cli.run(["status", run, "--detail", "--calibration", "mine", "--json"]) == 0
    detail = json.loads(capsys.readouterr().out)["detail"]
    rows = [row for row in open_run(run, calibration="mine").rows() if row["segments"] and len(row["segments"]) > 1]
    assert detail["quality_mean"] == pytest.approx(sum(wanted(row) or 0 for row in rows) / len(rows))
    assert list(detail["derived"]) == ["mine/1"]


def test_windows_that_the_table_lacks_are_told_and_have_no_prediction(run, caplog):
    ledger = Ledger.open(run)
    shard = list(ledger.shards.values())[1]
    rows = [record(key, shard.id, i, label_map(50 + i)) for i, key in enumerate(KEYS[1])]
    ledger.writer.commit(ShardTask(shard, 0, 0, 1), 0, rows, 0, 0.0)
    found = list(open_run(run, calibration="mine").rows())
    assert "was made from 2 of 3 windows: run `diffseg calibrate RUN --extend`" in caplog.text
    new = [row for row in found if row["shard"] == shard.id]
    assert {row["quality"] for row in new} == {row["predicted_iou"] for row in new} == {None}
    assert {each["score"] for row in new for each in row["segments"]} == {0.0}
    assert not [
        row for row in open_run(run, calibration="mine").rows(filter=parse_filter("quality >= 0")) if row in new
    ]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--calibration", "others"], "no derived table 'others'; there are mine"),
        (["--where", "predicted_iou > 0.5"], "--where reads predicted_iou, which only a derived table has"),
    ],
)
def test_what_is_not_there_is_one_line(run, tmp_path, capsys, flags, line):
    assert cli.run(["export", run, "--format", "png", "--output", str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


def test_a_table_is_of_one_cut_and_read_at_no_other(tmp_path, capsys):
    run = str(make_run(tmp_path, KEYS, trees=Cut(height=0.4)).store)
    predict(Ledger.open(run, cut=Cut(segments=3)), "three")
    predict(Ledger.open(run), "plain")
    for row in open_run(run, Cut(segments=3), "three").rows():
        assert [each["score"] for each in row["segments"]] == [pytest.approx(iou(row["index"], n)) for n in range(3)]
    export = ["export", run, "--format", "png", "--output", str(tmp_path / "out")]
    for flags, said in (
        (["--calibration", "three"], "of segments at the cut 3 segments"),
        (["--calibration", "three", "--segments", "4"], "of segments at the cut 3 segments"),
        (["--calibration", "plain", "--segments", "3"], "of segments as they were labelled"),
    ):
        assert cli.run([*export, *flags]) == 2
        assert said in capsys.readouterr().err
    assert cli.run([*export, "--calibration", "three", "--segments", "3", "--where", "predicted_iou > 0.1"]) == 0
    assert RunDataset(run, segments=3, calibration="three")[0].segments[2].score == pytest.approx(iou(0, 2))
    predict(Ledger.open(run, cut=Cut(auto=True)), "auto")
    read = ["status", run, "--detail", "--calibration", "auto"]
    assert [cli.run([*read, *flags]) for flags in (["--cut", "auto"], ["--cut", "0.4"], [])] == [0, 0, 2]
    predict(Ledger.open(run, cut=Cut(height=0.1)), "fine")
    with pytest.raises(ConfigError, match="a calibration is of one cut"):
        RunDataset(run, cut=(0.1, 0.5), calibration="fine")


NAMES = {1: "sky", 2: "tree", 3: "never there"}


def category(index: int, segment: int) -> int | None:
    """1 and 2 in turn; null for the segments of id 4."""
    return None if segment == 4 else (index + segment) % 2 + 1


def categorise(ledger: Ledger, name: str = "kinds", **changed: Any) -> None:
    def values(window):
        for row in ledger.rows(["index", "shard", "segments"], windows=[window]):
            for each in row["segments"] or ():
                found = category(row["index"], each["id"])
                yield {"index": row["index"], "segment": each["id"], "category": found}

    table = [{"id": id_, "name": kind, "thing": id_ == 2} for id_, kind in NAMES.items()]
    parameters = {"categories": table} | changed
    cut = str(ledger.cut) if ledger.cut else None
    note = Note(command="diffseg categories RUN", columns={"category": "int32"}, parameters=parameters, cut=cut)
    write(ledger, name, note, values)


@pytest.fixture
def named(run: str) -> str:
    categorise(Ledger.open(run))
    return run


def names_of(row: Any) -> list[str | None]:
    found = [category(row["index"], each["id"]) for each in row["segments"] or ()]
    return [NAMES[id_] if id_ else None for id_ in found]


def test_segments_have_the_category_of_the_table_beside_the_score_of_a_calibration(named):
    ledger = open_run(named, calibration="mine", categories="kinds@1")
    rows = list(ledger.rows(["index", "segments", "quality"]))
    assert [[each["category"] for each in row["segments"] or ()] for row in rows] == [names_of(row) for row in rows]
    assert [row["quality"] for row in rows] == [pytest.approx(wanted(row)) if row["segments"] else None for row in rows]
    assert (ledger.categories, ledger.calibration) == ("kinds/1", "mine/1")
    assert [(each.id, each.name, each.thing) for each in ledger.categories_table] == [
        (1, "sky", False),
        (2, "tree", True),
        (3, "never there", False),
    ]
    assert {each["category"] for row in Ledger.open(named).rows() for each in row["segments"] or ()} == {None}


def test_every_reader_has_the_categories(named, tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert cli.run(["export", named, "--format", "coco-panoptic", "--output", str(out), "--categories", "kinds"]) == 0
    document = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    ids = {each["id"]: each["name"] for each in document["categories"]}
    assert ids == NAMES
    index = {key: at for keys in KEYS for at, key in enumerate(keys)}
    keys = {image["id"]: image["key"] for image in document["images"]}
    for each in document["annotations"]:
        for info in each["segments_info"]:
            assert info["category_id"] == category(index[keys[each["image_id"]]], info["id"] - 1)
    assert json.loads((out / "export.json").read_text())["categories"] == "kinds/1"
    dataset: RunDataset[Example] = RunDataset(named, categories="kinds/1")
    stream: RunStream[Example] = RunStream(named, categories="kinds")
    examples = [*(dataset[number] for number in range(len(dataset))), *stream]
    assert len(examples) == 2 * len(LABELLED)
    assert {each.id: each.name for each in dataset.categories} == NAMES
    assert stream.categories == dataset.categories
    for example in examples:
        assert [each.category for each in example.segments] == names_of(
            {"index": example.index, "segments": [{"id": each.id} for each in example.segments]}
        )
    assert cli.run(["preview", named, "--output", str(page), "--categories", "kinds"]) == 0
    assert '["categories","kinds/1"]' in page.read_text()
    assert '"category":"tree"' in page.read_text()
    capsys.readouterr()
    assert cli.run(["status", named, "--detail", "--categories", "kinds", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["detail"]["categories"]
    every = [name for row in Ledger.open(named).rows() for name in names_of(row)]
    assert counted == {name: every.count(name) for name in ("sky", "tree")}
    assert cli.run(["status", named, "--detail", "--categories", "kinds"]) == 0
    assert "segments by category" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("'sky' in categories and num_segments == 1", ""),
        ("'tree' in categories and num_segments == 1", "b"),
        ("'sky' not in categories", "b"),
        ("'tree' in categories and key in ['a', 'g']", "ag"),
        ("'never there' in categories", ""),
    ],
)
def test_a_condition_asks_which_categories_an_image_has(named, where, keys):
    dataset: RunDataset[Example] = RunDataset(named, where=where, categories="kinds")
    assert {dataset[number].key for number in range(len(dataset))} == set(keys)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--categories", "others"], "no derived table 'others'; there are kinds, mine"),
        (["--categories", "kinds@7"], "'kinds' has no revision '7', the latest is 1"),
        (["--categories", "mine"], "has no column category, it has predicted_iou"),
        (["--calibration", "kinds"], "has no column predicted_iou, it has category"),
        (["--categories", "bare"], "bare/1: its note has no list of categories"),
        (["--categories", "twice"], "its note has no list of categories: 'sky' is there twice"),
        (["--categories", "less"], "less/1: category 2 is not in its note"),
        (["--where", "'sky' in categories"], "--where reads categories, which only a derived table has"),
        (["--where", "3 in categories", "--categories", "kinds"], "3 holds numbers, categories strings"),
    ],
)
def test_categories_that_are_not_there_are_one_line(named, tmp_path, capsys, flags, line):
    ledger = Ledger.open(named)
    if flags[1] in ("bare", "twice", "less"):
        sky = {"id": 1, "name": "sky"}
        table: Any = {"bare": None, "twice": [sky, sky | {"id": 2}], "less": [sky]}[flags[1]]
        categorise(ledger, flags[1], categories=table)
    assert cli.run(["export", named, "--format", "png", "--output", str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told


def test_heights_drawn_at_random_have_no_categories(tmp_path):
    run = str(make_run(tmp_path, KEYS, trees=Cut(height=0.4)).store)
    categorise(Ledger.open(run, cut=Cut(height=0.1)))
    with pytest.raises(ConfigError, match="a table of categories is of one cut"):
        RunDataset(run, cut=(0.1, 0.5), categories="kinds")
