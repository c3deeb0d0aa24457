"""diffseg categories: a run of known materials grouped, named from a few images, and read with what was found."""

import io
import json
import re
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.shared import cli
from pipeline.categories import categorise, learning
from pipeline.categories import segments as drawing
from pipeline.categories.segments import described, sample
from pipeline.concurrency import map_here
from pipeline.derived import note as writing
from pipeline.derived.joined import DerivedTable, open_run
from pipeline.derived.note import read_note
from pipeline.gallery import exemplars
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import ShardTask
from pipeline.records import LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.categories.materials import KEYS, MATERIALS, material_record, material_run, materials, truth_of, write_truth
from tests.support.labelled import CUT, make_run

NAMES = ("sky", "tree", "car", "road")


@pytest.fixture
def run(tmp_path):
    return str(material_run(tmp_path).store)


@pytest.fixture
def named(tmp_path):
    """Flags that give truth of eight images and its names."""
    lines = ("sky\tstuff", "tree\tstuff", "car\tthing", "road")
    (tmp_path / "names.txt").write_text("\n".join(lines) + "\n")
    return ["--truth", str(write_truth(tmp_path, 8)), "--names", str(tmp_path / "names.txt")]


def found(run: str, table: str, **at: Any) -> dict[tuple[int, int], list[tuple[int, str | None]]]:
    """Each segment's own material and its category, by shard's number and index."""
    ledger = open_run(run, categories=table, **at)
    numbers = {shard: number for number, shard in enumerate(ledger.shards)}
    pairs = {}
    for row in ledger.rows(["shard", "index", "segments", "label_map"]):
        number, labels = 100 * numbers[row["shard"]] + row["index"], decode_label_map(row["label_map"])
        pairs[numbers[row["shard"]], row["index"]] = [
            (int(truth_of(number)[labels == each["id"]][0]), each["category"]) for each in row["segments"]
        ]
    return pairs


@pytest.mark.parametrize("faiss", [True, False])
def test_clusters_of_separated_vectors_are_the_materials(run, capsys, monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(learning, "find_spec", lambda name: None if name == "faiss" else find_spec(name))
    assert cli.run(["categories", run, "--clusters", "4", "--unknown", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["categories"]] == [f"cluster-0{n}" for n in range(1, 5)]
    pairs = [pair for image in found(run, "categories").values() for pair in image]
    assert len(set(pairs)) == MATERIALS
    assert {category for _, category in pairs} == {each["name"] for each in told["categories"]}
    sizes = [sum(category == each["name"] for _, category in pairs) for each in told["categories"]]
    assert sizes == sorted(sizes, reverse=True)


def test_segments_far_from_their_centre_are_unknown(run):
    assert cli.run(["categories", run, "--clusters", "4", "--unknown", "0.2"]) == 0
    pairs = [pair for image in found(run, "categories").values() for pair in image]
    unknown = [pair for pair in pairs if pair[1] is None]
    assert 0.1 < len(unknown) / len(pairs) < 0.35
    assert len({pair for pair in pairs if pair[1]}) == MATERIALS


def test_a_sample_is_the_same_in_any_order_and_no_larger_than_asked(run, monkeypatch):
    ledger = Ledger.open(run)
    whole = sample(ledger, 1000, 3, map_here)
    assert whole.shape == (sum(len(np.unique(materials(n))) for n in (*range(10), *range(100, 106))), 65)
    assert np.linalg.norm(whole[:, :-1], axis=1) == pytest.approx(1, abs=1e-6)
    few = sample(ledger, 20, 3, map_here)
    assert 0 < len(few) <= 20  # images are drawn by chance, with twice the segments on average
    assert (few == sample(ledger, 20, 3, lambda function, items: (function(each) for each in [*items]))).all()
    monkeypatch.setattr(drawing, "OVERDRAWN", 100)
    all_drawn = sample(ledger, 20, 3, map_here)
    assert all_drawn.shape == (20, 65)
    assert not (all_drawn == sample(ledger, 20, 4, map_here)).all()


def test_a_few_named_images_name_all_segments_at_the_cut_that_is_best(run, named, capsys):
    assert cli.run(["categories", run, *named, "--name", "named"]) == 0
    told = capsys.readouterr().out
    assert "of 8 images" in told
    assert "accuracy of pixels 1.000, mIoU 1.000" in told
    assert "read it with --categories named/1 --cut 0.4" in told
    pairs = found(run, "named", cut=CUT)
    assert {NAMES[material] == category for image in pairs.values() for material, category in image} == {True}
    note, _ = read_note(Ledger.open(run), "named")
    assert [(each["name"], each["thing"]) for each in note.parameters["categories"]] == [
        ("sky", False),
        ("tree", False),
        ("car", True),
        ("road", None),
    ]
    assert note.parameters["expected"]["images"] == 8
    assert dict(note.columns) == {"category": "int32", "margin": "float32", "score": "float32"}


@pytest.mark.parametrize("kind", ["clusters", "named"])
def test_the_gallery_has_the_clearest_images_of_each_category(run, named, tmp_path, monkeypatch, kind):
    page = tmp_path / "page.html"
    monkeypatch.setattr(exemplars, "EXEMPLARS", 2)
    flags = ["--clusters", "4"] if kind == "clusters" else [*named, "--cut", "auto"]
    assert cli.run(["categories", run, *flags, "--name", "kinds"]) == 0
    at = [] if kind == "clusters" else ["--cut", "auto"]
    assert cli.run(["preview", run, "--output", str(page), "--categories", "kinds", "--samples", "8", *at]) == 0
    [text] = re.findall(r'<script id="index"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    index = json.loads(text)
    shown = {item["key"]: item["exemplar"] for item in index["items"]}
    ledger = Ledger.open(run, cut=CUT if at else None)
    column = "distance" if kind == "clusters" else "margin"
    table = DerivedTable(ledger, "kinds", ["category", column])
    clear = defaultdict[int, dict[str, float]](dict)
    for row in table.join(ledger.rows(["key", "shard", "index", "segments"])):
        for each in row["segments"]:
            if each["category"]:
                value = each[column] if kind == "clusters" else -each[column]
                clear[each["category"]][row["key"]] = min(value, clear[each["category"]].get(row["key"], 9))
    names = {each["id"]: each["name"] for each in table.note.parameters["categories"]}
    for id_, images in clear.items():
        nearest = sorted(images.values())[:2]
        found = sorted(images[key] for key, exemplar in shown.items() if names[id_] in exemplar)
        assert found == nearest
    assert all(set(item["exemplar"]) <= set(item["categories"]) for item in index["items"])


def test_what_is_like_nothing_in_the_truth_is_unknown(run, named, tmp_path):
    for path in (tmp_path / "truth").glob("*.png"):  # `road` is not labelled anywhere
        pixels = np.asarray(Image.open(path)).copy()
        pixels[pixels == 3] = 255
        Image.fromarray(pixels).save(path)
    assert cli.run(["categories", run, *named, "--cut", "auto"]) == 0
    pairs = [pair for image in found(run, "categories", cut=CUT).values() for pair in image]
    others = [category and category == NAMES[material] for material, category in pairs if material != 3]
    assert False not in others
    assert others.count(None) < len(others) / 10
    roads = [category for material, category in pairs if material == 3]
    assert "road" not in roads
    assert roads.count(None) > len(roads) / 2


def test_a_segment_counts_by_the_share_of_its_largest_category():
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 400)
    features = np.stack([side + rng.normal(0, 0.3, 400), rng.normal(0, 1, 400)], axis=1)
    pure = np.eye(2, dtype=int)[side] * 100
    mixed = np.stack([51 - 2 * side[::-1], 49 + 2 * side[::-1]], axis=1)  # says the opposite, at half of the weight
    both = learning.linear(np.concatenate([features] * 2), np.concatenate([pure, mixed]), 1.0)
    said = (features @ both[0].T + both[1]).argmax(1)
    assert (said == side).mean() > 0.9
    nothing = learning.linear(np.concatenate([features, features]), np.concatenate([pure, 0 * mixed]), 1.0)
    assert nothing[0] == pytest.approx(learning.linear(features, pure, 1.0)[0])


@pytest.mark.parametrize("kind", ["clusters", "named"])
def test_new_windows_are_taken_in_by_the_same_model(tmp_path, named, capsys, kind):
    whole = str(material_run(tmp_path / "whole").store)
    ledger = material_run(tmp_path, leave_out=(1,))
    flags = ["--clusters", "4", "--unknown", "0"] if kind == "clusters" else [*named, "--cut", "auto"]
    assert cli.run(["categories", str(ledger), *flags, "--name", "kinds"]) == 0
    shard = list(ledger.shards.values())[1]
    rows = [material_record(f"b{i}", shard.id, i, 100 + i) for i in (4, 5)]
    ledger.writer.commit(ShardTask(shard, 1, 1, 0), 1, rows, 0, 0.0)
    capsys.readouterr()
    assert cli.run(["categories", str(ledger), "--name", "kinds", "--extend"]) == 0
    assert "4 categories in 1 windows" in capsys.readouterr().out
    at = {"cut": CUT} if kind == "named" else {}
    new = [pair for index in (4, 5) for pair in found(str(ledger), "kinds", **at)[1, index]]
    assert None not in {category for _, category in new}
    if kind == "named":
        assert cli.run(["categories", whole, *flags, "--name", "kinds"]) == 0
        assert found(whole, "kinds", **at) == found(str(ledger), "kinds", **at)


def content(ledger: Ledger, table: str = "kinds") -> dict[str, bytes]:
    return {name: ledger.store.get(name) for name, _ in ledger.store.list(f"derived/{table}/")}


def test_a_killed_writer_is_resumed_by_the_same_command(run, monkeypatch):
    ledger = Ledger.open(run)
    arguments = 4, "kinds", "diffseg categories", 0, 0.01, map
    monkeypatch.setattr(writing, "WINDOWS", 2)
    put, written = type(ledger.store).put_new, list[str]()

    def dying(store: Any, name: str, data: bytes) -> bool:
        if name.startswith("derived/"):
            if len(written) == 1:
                raise KeyboardInterrupt
            written.append(name)
        return bool(put(store, name, data))

    monkeypatch.setattr(type(ledger.store), "put_new", dying)
    with pytest.raises(KeyboardInterrupt):
        categorise.cluster(ledger, *arguments)
    monkeypatch.setattr(type(ledger.store), "put_new", put)
    before = content(ledger)
    assert list(before) == written
    asked = list[str]()

    def counted(ledger: Ledger, window: Any, *more: Any) -> Any:
        asked.append(window.name)
        return described(ledger, window, *more)

    monkeypatch.setattr(categorise, "described", counted)
    categorise.cluster(ledger, *arguments)
    assert len(asked) == 3  # of five windows two were there
    assert content(ledger).items() > before.items()
    categorise.cluster(ledger, 4, "again", *arguments[2:])
    assert found(run, "again") == found(run, "kinds")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "name one of them"),
        (("--clusters", "4", "--extend"), "name one of them"),
        (("--extend", "--cut", "0.4"), "--extend goes on at the cut of the table"),
        (("--extend",), "no derived table 'categories'"),
        (("--clusters", "1"), "'--clusters': Input should be greater than or equal to 2"),
        (("--clusters", "400"), "400 clusters need as many segments at least, there are 61"),
        (("--clusters", "4", "--name", "My kinds"), "a name has small letters"),
        (("--truth", "TRUTH"), "name them with --names FILE, or a --protocol that does"),
        (("--truth", "TRUTH", "--names", "nowhere.txt"), "nowhere.txt: no such list of names"),
        (("--truth", "TRUTH", "--names", "EMPTY"), "an empty list of names"),
        (("--truth", "TRUTH", "--names", "TWICE"), "'sky' is there twice"),
        (("--truth", "TRUTH", "--names", "ODD"), "after a tab stands thing or stuff, not 'animal'"),
        (("--truth", "TRUTH", "--names", "ONE"), "the truth has one category"),
        (("--truth", "SIZES", "--names", "NAMES"), "two images with truth are needed at least, 1 can be used: a0"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, tmp_path, capsys, flags, line):
    texts = {"EMPTY": "\n", "TWICE": "sky\ncar\nsky\n", "ODD": "sky\tanimal\n", "ONE": "sky\n", "NAMES": "sky\ncar\n"}
    places = {name: tmp_path / name.lower() for name in texts}
    for name, text in texts.items():
        places[name].write_text(text)
    places["TRUTH"] = write_truth(tmp_path, 3)
    (tmp_path / "sizes").mkdir()
    places["SIZES"] = tmp_path / "sizes"
    for number, size in enumerate(((18, 24), (18, 99))):
        Image.fromarray(np.eye(*size, dtype=np.uint8)).save(tmp_path / "sizes" / f"a{1 - number}.png")
    assert cli.run(["categories", run, *(str(places.get(each, each)) for each in flags)]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told


def test_a_run_without_vectors_and_an_absent_library_are_one_line(tmp_path, run, capsys, monkeypatch):
    plain = str(make_run(tmp_path / "plain", KEYS).store)
    assert cli.run(["categories", plain, "--clusters", "4"]) == 2
    assert "a run without vectors, by which segments compare: make one by `label --vectors`" in capsys.readouterr().err
    monkeypatch.setattr(learning, "find_spec", lambda name: None)
    assert cli.run(["categories", run, "--clusters", "4"]) == 2
    assert "pip install 'diffseg[categories]'" in capsys.readouterr().err


def test_rows_without_vectors_and_foreign_tables_are_one_line(tmp_path, run, capsys):
    ledger = Ledger.open(run)
    ledger.store.put_new("derived/kinds/1/note.json", b'{"command": "diffseg track", "version": "1", "columns": {}}')
    assert cli.run(["categories", run, "--name", "kinds", "--extend"]) == 2
    assert "that this version's categories did not make: 'kind'" in capsys.readouterr().err


def test_damaged_vectors_are_one_line(tmp_path, capsys):
    def rows(key: str, shard: str, index: int, number: int) -> LabelRecord:
        made = material_record(key, shard, index, number)
        return replace(made, vectors=b"short") if number == 3 else made

    assert cli.run(["categories", str(make_run(tmp_path, KEYS, trees=CUT, rows=rows)), "--clusters", "4"]) == 2
    told = capsys.readouterr().err.strip()
    assert "sample 3 has no vectors" in told
    assert "\n" not in told


def test_evaluate_matches_the_categories_once_for_the_data_set(run, tmp_path, capsys):
    truth = str(write_truth(tmp_path, 10))
    assert cli.run(["categories", run, "--clusters", "4", "--unknown", "0"]) == 0
    evaluate = ["evaluate", run, "--truth", truth, "--classes", "4", "--json", "--categories", "categories"]
    capsys.readouterr()
    assert cli.run(evaluate) == 0
    figures = json.loads(capsys.readouterr().out)["methods"]["run"]["dataset_matching"]
    assert (figures["accuracy"], figures["miou"]) == (1.0, 1.0)
    (tmp_path / "names.txt").write_text("sky\ntree\ncar\nroad\n")
    names = ["--names", str(tmp_path / "names.txt")]
    assert cli.run(["categories", run, "--truth", truth, *names, "--name", "named", "--cut", "auto"]) == 0
    capsys.readouterr()
    named = ["evaluate", run, "--truth", truth, *names, "--json", "--categories", "named", "--cut", "auto"]
    assert cli.run(named) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["run"]["by_category"]["names"]["miou"] > 0.9
    assert cli.run(["evaluate", "--truth", truth, "--baseline", "one-segment", "--categories", "categories"]) == 2
    assert "name that run" in capsys.readouterr().err


def test_a_run_of_the_embedded_model_is_grouped_and_named_end_to_end(tmp_path, capsys):
    halves = np.full((96, 96, 3), (200, 60, 40), np.uint8)
    halves[:, 48:] = (30, 90, 180)
    samples = list[tuple[str, dict[str, bytes]]]()
    (tmp_path / "truth").mkdir()
    for number in range(4):  # the halves change sides
        turned = halves[:, :: 1 - 2 * (number % 2)]
        buffer = io.BytesIO()
        Image.fromarray(turned).save(buffer, "PNG")
        samples.append((f"p{number}", {"png": buffer.getvalue()}))
        Image.fromarray((turned[..., 2] > 100).astype(np.uint8)).save(tmp_path / "truth" / f"p{number}.png")
    (tmp_path / "photos.tar").write_bytes(write_samples(samples))
    (tmp_path / "names.txt").write_text("rust\nwater\n")
    run, flags = str(tmp_path / "run"), ["--model", "tiny", "--workers", "0", "--vectors", "--image-size", "128"]
    assert cli.run(["label", str(tmp_path / "photos.tar"), "--output", run, *flags]) == 0
    named = ["--truth", str(tmp_path / "truth"), "--names", str(tmp_path / "names.txt"), "--segments", "2"]
    assert cli.run(["categories", run, "--clusters", "2", "--segments", "2", "--name", "groups"]) == 0
    assert cli.run(["categories", run, *named, "--name", "names"]) == 0
    assert "read it with --categories names/1 --segments 2" in capsys.readouterr().out
    out = tmp_path / "out"
    export = ["export", run, "--format", "coco-panoptic", "--output", str(out), "--segments", "2"]
    assert cli.run([*export, "--categories", "names"]) == 0
    document = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    categories = {each["id"]: each["name"] for each in document["categories"]}
    found = [
        {categories[info["category_id"]]: info["bbox"][0] for info in each["segments_info"]}
        for each in sorted(document["annotations"], key=lambda each: each["file_name"])
    ]
    assert found == [{"rust": 0, "water": 48}, {"rust": 48, "water": 0}] * 2
