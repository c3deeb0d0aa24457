"""Every reader at any cut of a run with trees, against cutting by hand."""

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray import cloudpickle
from torch.utils.data import DataLoader

from diffseg.cut import Cut
from jobs.shared import cli
from pipeline import table
from pipeline.datasets import Example, RunDataset, RunStream
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError
from pipeline.exports.export import FORMATS, export
from pipeline.records import OK
from pipeline.run.compact import compact
from pipeline.run.ledger import Ledger
from pipeline.table.filter import holds, parse_filter
from pipeline.table.label_map import decode_label_map
from tests.support.labelled import CUT, at_source, label_map, make_run
from tests.support.trees import a_tree
from tests.support.truths import lay, png
from tests.test_cut import by_hand

KEYS = [[f"{shard}{i}" for i in range(6)] for shard in "ab"]
FAILED = {(0, 3): "undecodable"}
LABELLED = [key for keys in KEYS for key in keys if key != "a3"]
SHAPE = label_map(0).shape
READERS = [
    ["export", "RUN", "--format", "png", "--output", "OUT"],
    ["preview", "RUN", "--output", "OUT/page.html"],
    ["status", "RUN", "--detail"],
    ["evaluate", "RUN", "--truth", "TRUTH"],
]


@pytest.fixture
def run(tmp_path):
    return str(make_run(tmp_path, KEYS, trees=CUT, failed=FAILED))


def by_key(key, cut):
    """The label map of a sample, at half the size of its photo."""
    leaf_map, tree = a_tree(100 * "ab".index(key[0]) + int(key[1:]), SHAPE)
    return by_hand(leaf_map, tree, cut)[0]


def asked(command: list[str], tmp_path: Path, *flags: str) -> list[str]:
    places = {"RUN": str(tmp_path / "run"), "TRUTH": str(tmp_path / "truth")}
    return [places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in command] + list(flags)


CUTS = [Cut(height=0.2), Cut(height=9.0), Cut(segments=3)]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("compacted", [False, True])
def test_rows_are_those_of_the_cut(run, cut, compacted):
    if compacted:
        compact(Ledger.open(run))
    columns = ["key", "status", "label_map", "num_segments", "segments", "quality"]
    for row in Ledger.open(run, cut=cut).rows(columns):
        assert set(row) == set(columns)
        if row["key"] == "a3":
            assert [row[name] for name in columns] == ["a3", "undecodable", None, None, None, None]
            continue
        wanted = by_key(row["key"], cut)
        assert (decode_label_map(row["label_map"]) == wanted).all()
        assert row["num_segments"] == len(row["segments"]) == wanted.max() + 1
        assert [segment["area"] for segment in row["segments"]] == np.bincount(wanted[wanted >= 0]).tolist()
        assert (row["quality"] is None) == (row["num_segments"] == 1)


@pytest.mark.parametrize("wanted", [CUT, Cut(auto=True)], ids=str)
def test_the_cut_that_was_labelled_gives_what_is_stored(run, wanted):
    stored, again = (
        list(Ledger.open(run, cut=cut).rows(["key", "label_map", "num_segments", "segments", "quality"]))
        for cut in (None, wanted)
    )
    for row, other in zip(stored, again, strict=True):
        if row["key"] != "a3":
            assert (decode_label_map(row.pop("label_map")) == other.pop("label_map")).all()
            assert [each.pop("box") for each in row["segments"]] == [
                list(each.pop("box")) for each in other["segments"]
            ]
        assert row == other


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_at_a_cut_is_that_of_a_run_labelled_at_it(run, tmp_path, kind):
    command = ["export", run, "--format", kind, "--min-score", "0.2", "--output"]
    assert cli.run([*command, str(tmp_path / "cut"), "--segments", "3"]) == 0
    shutil.rmtree(run)
    make_run(tmp_path, KEYS, trees=Cut(segments=3), failed=FAILED)
    assert cli.run([*command, str(tmp_path / "plain")]) == 0
    cut, plain = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("cut", "plain")
    )
    assert json.loads(cut.pop("export.json")) == {**json.loads(plain.pop("export.json")), "segments": 3}
    assert cut == plain


def test_another_cut_is_another_export(run, tmp_path, capsys):
    command = asked(READERS[0], tmp_path)
    assert cli.run([*command, "--cut", "0.2"]) == 0
    assert cli.run([*command, "--cut", "0.20"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert cli.run([*command, "--segments", "4"]) == 2
    assert "it was begun with --cut 0.2 and without --segments" in capsys.readouterr().err
    assert cli.run(command) == 2


@pytest.mark.parametrize("parallel", [False, True])
def test_parts_written_elsewhere_are_of_the_same_cut(run, tmp_path, parallel):
    def far(function, parts):
        return map(pickle.loads(cloudpickle.dumps(function)), parts)

    export(
        Ledger.open(run, cut=Cut(segments=2)),
        str(tmp_path / "out"),
        "png",
        Selection(),
        parallel_map=far if parallel else map,
    )
    for key in LABELLED:
        with Image.open(tmp_path / "out" / "SegmentationObject" / f"{key}.png") as picture:
            assert (np.asarray(picture) == at_source(by_key(key, Cut(segments=2)))).all()


@pytest.mark.parametrize("where", ["num_segments > 2", "quality < MEDIAN and key != 'a1'", "not quality < MEDIAN"])
def test_a_condition_is_one_on_the_segments_of_the_cut(run, tmp_path, where):
    cut = Cut(segments=2) if "num" in where else Cut(segments=3)
    rows = list(Ledger.open(run, cut=cut).rows(["key", "status", "num_segments", "quality"]))
    where = where.replace("MEDIAN", str(np.median([row["quality"] for row in rows if row["status"] == OK])))
    wanted = {row["key"] for row in rows if row["status"] == OK and holds(parse_filter(where), row)}
    assert wanted != set(LABELLED)
    stored = {row["key"] for row in Ledger.open(run).rows(["key"], filter=parse_filter(where))}
    assert stored != wanted
    assert cli.run([*asked(READERS[0], tmp_path), "--where", where, "--segments", str(cut.segments)]) == 0
    assert {path.stem for path in (tmp_path / "out").rglob("*.png")} == wanted
    dataset: RunDataset[Example] = RunDataset(run, where=where, segments=cut.segments)
    stream: RunStream[Example] = RunStream(run, where=where, segments=cut.segments)
    assert {dataset[number].key for number in range(len(dataset))} == wanted
    assert {example.key for example in stream} == wanted


def test_a_condition_on_segments_does_not_go_with_cuts_that_are_drawn(run):
    with pytest.raises(ConfigError, match="num_segments: they are of one cut"):
        RunDataset(run, where="num_segments > 2", cut=(0.1, 0.5))
    assert len(RunDataset(run, where="width > 3", cut=(0.1, 0.5))) == len(LABELLED)


def test_a_run_evaluated_at_a_cut_is_its_truth_at_that_cut_alone(run, tmp_path, capsys):
    lay(tmp_path / "truth", {f"{key}.png": png(by_key(key, Cut(segments=3))) for key in LABELLED})
    covering = []
    for flags in (["--segments", "3"], ["--segments", "2"], []):
        assert cli.run([*asked(READERS[3], tmp_path), *flags, "--against", run, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["methods"]
        covering.append([said[name]["summary"]["per_image"]["covering"]["value"] for name in ("run", "against")])
    assert covering[0][0] == 1
    assert covering[1][0] < 1
    assert covering[2][0] == covering[2][1] == covering[0][1] == covering[1][1] < 1


def test_status_and_gallery_count_the_segments_of_the_cut(run, tmp_path, capsys):
    assert cli.run([*asked(READERS[2], tmp_path), "--segments", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detail"]["segments_mean"] == 3
    assert cli.run([*asked(READERS[1], tmp_path), "--segments", "3"]) == 0
    page = page_of(tmp_path)
    assert '["cut","3 segments"],["segments an image","3.0"]' in page
    assert page.count('"count":3}') == len(LABELLED)
    assert cli.run(["status", run, "--cut", "1"]) == 2
    assert "belong to --detail" in capsys.readouterr().err


def test_the_gallery_of_a_run_with_trees_has_a_level_for_every_cut(run, tmp_path):
    assert cli.run(asked(READERS[1], tmp_path)) == 0
    blocks = dict(re.findall(r'<script id="([\w-]+)" type="application/json">(.*?)</script>', page_of(tmp_path)))
    index = json.loads(blocks["index"])
    [shown] = [each for each in index["items"] if each["key"] == "b1"]
    heights = [float(each["caption"].removeprefix("cut ")) for each in shown["maps"]]
    assert heights[index["level"]] == CUT.height
    assert heights == sorted(heights)
    wanted = [by_key("b1", Cut(height=height)).max() + 1 for height in heights]
    assert [each["count"] for each in shown["maps"]] == wanted
    assert len(set(wanted)) > 2
    assert [each["maps"] for each in index["items"] if each["key"] == "a3"] == [[]]


def page_of(tmp_path):
    return (tmp_path / "out" / "page.html").read_text()


def test_the_automatic_cut_is_the_run_s_own(run):
    ledger = Ledger.open(run, cut=Cut(auto=True))
    assert ledger.cut == Cut(height=ledger.run.segment.cut)


@pytest.mark.parametrize("reader", READERS, ids=lambda command: command[0])
def test_a_run_without_trees_asked_for_a_cut_is_one_line_before_any_work(tmp_path, capsys, reader):
    make_run(tmp_path)
    lay(tmp_path / "truth", {"a.png": png(label_map(0) + 1)})
    for flags in (["--cut", "0.3"], ["--cut", "auto"], ["--segments", "8"]):
        assert cli.run(asked(reader, tmp_path, *flags)) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "a run without trees" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reader", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cut", "0.3", "--segments", "8"], "name one of them"),
        (["--cut", "deep"], "a height in nats or 'auto', got 'deep'"),
        (["--cut", "-1"], "a height in nats or 'auto', got '-1'"),
        (["--segments", "0"], "at least one segment"),
    ],
)
def test_what_is_no_cut_is_one_line(run, tmp_path, capsys, reader, flags, message):
    assert cli.run(asked(reader, tmp_path, *flags)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_cut_of_no_run_is_refused(tmp_path, capsys):
    lay(tmp_path / "truth", {"a.png": png(label_map(0) + 1)})
    command = ["evaluate", "--truth", str(tmp_path / "truth"), "--baseline", "one-segment", "--segments", "3"]
    assert cli.run(command) == 2
    assert "name that run" in capsys.readouterr().err


def test_a_tree_that_is_damaged_is_one_line(run, tmp_path, capsys):
    ledger = Ledger.open(run)
    for window in ledger.windows():
        with ledger.store.reader(window.name) as stream:
            records, said = table.read_records(stream), table.read_window_metadata(stream)
        records = [replace(row, tree=row.tree and row.tree[:-1]) for row in records]
        ledger.store.replace(window.name, table.encode_window(records, said))
    for reader in READERS[:3]:
        assert cli.run(asked(reader, tmp_path, "--cut", "0.3")) == 2
        assert "a tree that cannot be cut: " in capsys.readouterr().err
    assert cli.run(asked(READERS[1], tmp_path)) == 2


# -- datasets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RunDataset, RunStream])
@pytest.mark.parametrize("cut", [{"cut": 0.2}, {"segments": 3}], ids=str)
def test_examples_are_of_the_cut(run, kind, cut):
    found = {example.key: example for example in kind(run, **cut)}
    assert list(found) == LABELLED
    wanted = Cut(height=cut.get("cut"), segments=cut.get("segments"))
    for key, example in found.items():
        assert (example.label_map.numpy() == at_source(by_key(key, wanted))).all()
        assert len(example.segments) == example.label_map.max() + 1


def maps(dataset):
    return {example.key: example.label_map.tolist() for example in dataset}


@pytest.mark.parametrize("kind", [RunDataset, RunStream])
def test_heights_are_drawn_by_seed_epoch_and_sample(run, kind):
    def drawn(seed, epoch=0, **more):
        dataset = kind(run, cut=(0.05, 0.95), seed=seed, **more)
        dataset.set_epoch(epoch)
        return maps(dataset)

    first = drawn(1)
    assert first == drawn(1) == maps(RunDataset(run, cut=(0.05, 0.95), seed=1))
    assert len({str(each) for each in (first, drawn(2), drawn(1, epoch=1))}) == 3
    heights = np.linspace(0.05, 0.95, 50)
    for key, labels in first.items():
        assert any(labels == at_source(by_key(key, Cut(height=height))).tolist() for height in heights)
    counts = {len(np.unique(labels)) for labels in first.values()}
    assert len(counts) > 2


def test_workers_draw_what_one_process_draws(run):
    stream: RunStream[Example] = RunStream(run, cut=(0.05, 0.95), seed=1)
    stream.set_epoch(3)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert maps(loader) == maps(stream)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cut": (0.5, 0.1)}, "the lower one first"),
        ({"cut": (0.0, 0.1)}, "above 0"),
        ({"cut": 0.5, "segments": 3}, "either a height or a number"),
        ({"cut": -1.0}, "at least 0"),
    ],
)
def test_what_is_no_cut_of_a_dataset_is_refused(run, given, message):
    with pytest.raises(ConfigError, match=message):
        RunDataset(run, **given)


@pytest.mark.parametrize("kind", [RunDataset, RunStream])
def test_a_dataset_of_a_run_without_trees_has_no_cut(tmp_path, kind):
    make_run(tmp_path)
    with pytest.raises(ConfigError, match="a run without trees"):
        list(kind(str(tmp_path / "run"), cut=(0.1, 0.5)))
