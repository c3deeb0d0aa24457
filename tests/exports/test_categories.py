"""Exports of runs with a table of categories, and of instances: held to the formats' rules and to other readers."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from diffseg.cut import components
from diffseg.draw import resize_labels
from diffseg.ridges import split
from diffseg.types import IGNORE
from jobs.shared import cli
from pipeline.datasets.samples import instances_of
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.table.leaf_map import decode_leaf_map
from tests.datasets.test_joined import NAMES, categorise, category
from tests.exports.test_huggingface import load as load  # a fixture
from tests.support.labelled import CUT, at_source, label_map, make_run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
NUMBERS = {key: number for number, key in enumerate("abcdef")} | {key: 100 + n for n, key in enumerate("ghi")}
INDEX = {key: number % 100 for key, number in NUMBERS.items()}  # in its shard
ID = {name: id_ for id_, name in NAMES.items()}  # only `tree` is a thing


@pytest.fixture
def run(tmp_path):
    ledger = make_run(tmp_path)
    categorise(ledger)
    return str(ledger.store)


def exported(run, tmp_path, kind, *flags):
    out = tmp_path / f"out-{kind}"
    assert cli.run(["export", run, "--format", kind, "--output", str(out), *flags]) == 0
    return out


def wanted(key):
    """A photo's category ids by the table, 0: void or unknown."""
    labels, found = at_source(label_map(NUMBERS[key])), np.zeros((18, 24), int)
    for segment in range(5):
        found[labels == segment] = category(INDEX[key], segment) or 0
    return found


def panoptic(out):
    """Documents and the ids of every PNG, by key."""
    document = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    keys = {image["id"]: image["key"] for image in document["images"]}
    for each in document["annotations"]:
        pixels = np.asarray(Image.open(out / "annotations" / "panoptic_train" / each["file_name"])).astype(int)
        yield keys[each["image_id"]], pixels @ [1, 256, 65536], each["segments_info"], document["categories"]


@pytest.mark.parametrize("kind", ["segments", "components"])
def test_a_panoptic_export_keeps_the_rules_of_its_format_with_real_categories(run, tmp_path, kind):
    out = exported(run, tmp_path, "coco-panoptic", "--categories", "kinds", "--instances", kind)
    for key, ids, found, categories in panoptic(out):
        assert {each["id"]: (each["name"], each["isthing"]) for each in categories} == {
            id_: (name, int(name == "tree")) for id_, name in NAMES.items()
        }
        assert sorted(each["id"] for each in found) == np.unique(ids[ids > 0]).tolist()
        of_pixel = np.zeros_like(ids)
        for each in found:
            inside = ids == each["id"]
            of_pixel[inside] = each["category_id"]
            rows, columns = ndimage.find_objects(inside.astype(int))[0]
            assert each["area"] == inside.sum()
            sides = columns.stop - columns.start, rows.stop - rows.start
            assert each["bbox"] == [columns.start, rows.start, *sides]
            assert (each["iscrowd"], 0 <= each["score"] <= 1) == (0, True)
        assert (of_pixel == wanted(key)).all()
        stuff = [each["category_id"] for each in found if each["category_id"] != ID["tree"]]
        assert len(set(stuff)) == len(stuff)
        trees = at_source(label_map(NUMBERS[key]))
        trees[wanted(key) != ID["tree"]] = IGNORE
        count = len(components(trees)[1]) if kind == "components" else len(np.unique(trees[trees >= 0]))
        assert len(found) - len(stuff) == count


def test_the_score_of_merged_stuff_is_the_mean_of_its_segments_by_area(run, tmp_path):
    out = exported(run, tmp_path, "coco-panoptic", "--categories", "kinds")
    for key, _, found, _ in panoptic(out):
        labels = at_source(label_map(NUMBERS[key]))
        areas = np.bincount(labels[labels >= 0], minlength=5)
        own = [segment for segment in range(5) if category(INDEX[key], segment) == ID["sky"]]
        [sky] = [each for each in found if each["category_id"] == ID["sky"]]
        assert sky["area"] == sum(areas[own])
        assert sky["score"] == pytest.approx(sum(areas[n] * (1 - n / 8) for n in own) / sum(areas[own]))


def test_pycocotools_reads_instances_of_things_and_finds_all_of_them_again(run, tmp_path, capsys):
    out = exported(run, tmp_path, "coco-segments", "--categories", "kinds")
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    keys = {number: image["key"] for number, image in coco.imgs.items()}
    count = 0
    for number, key in keys.items():
        trees = at_source(label_map(NUMBERS[key]))
        trees[wanted(key) != ID["tree"]] = IGNORE
        regions, owners = components(trees)
        own = coco.loadAnns(coco.getAnnIds(number))
        assert [each["segment_id"] for each in own] == owners.tolist()
        for region, each in enumerate(own):
            assert (coco.annToMask(each) == (regions == region)).all()
            assert (each["category_id"], each["score"]) == (ID["tree"], 1 - each["segment_id"] / 8)
            assert each["area"] == (regions == region).sum()
        count += len(own)
    assert count > 40
    score = COCOeval(coco, coco.loadRes([dict(each) for each in coco.anns.values()]), "segm")
    score.params.maxDets = [1, 100, 1000]
    score.evaluate()
    score.accumulate()
    capsys.readouterr()
    recall = score.eval["recall"][:, list(score.params.catIds).index(ID["tree"]), 0]
    assert recall[:, 2].tolist() == [1.0] * 10
    assert (recall[:, 0] < 0.5).all()  # one an image of several


def test_pngs_hold_the_ids_of_categories_beside_their_table(run, tmp_path):
    out = exported(run, tmp_path, "png", "--categories", "kinds", "--things", "sky")
    for key in NUMBERS:
        with Image.open(out / "SegmentationClass" / f"{key}.png") as picture:
            assert (np.asarray(picture) == np.where(wanted(key), wanted(key), 255)).all()
        with Image.open(out / "SegmentationObject" / f"{key}.png") as picture:
            labels = at_source(label_map(NUMBERS[key]))
            assert (np.asarray(picture) == np.where(labels == IGNORE, 255, labels)).all()
    listed = json.loads((out / "categories.json").read_text())
    assert [(each["id"], each["name"], each["isthing"]) for each in listed] == [
        (1, "sky", 1),
        (2, "tree", 1),
        (3, "never there", 0),
    ]


def test_datasets_gives_categories_as_class_labels(run, tmp_path, load):
    out = exported(run, tmp_path, "huggingface", "--categories", "kinds")
    read = load(str(out))["train"]
    names = read.features["segments"].feature["category"].names
    assert names == list(NAMES.values())
    for row in read:
        found = [category(INDEX[row["key"]], segment) for segment in range(5)]
        said = [each["category"] for each in row["segments"]]
        assert [None if each is None else ID[names[each]] for each in said] == found


@pytest.mark.parametrize(
    ("flags", "things"),
    [
        ([], {"tree"}),
        (["--stuff", "tree"], set()),
        (["--things", "sky,never there"], {"sky", "tree", "never there"}),
        (["--things", "sky", "--stuff", "tree"], {"sky"}),
    ],
)
def test_the_table_says_what_is_a_thing_unless_the_flags_do(run, tmp_path, flags, things):
    out = exported(run, tmp_path, "png", "--categories", "kinds", *flags)
    listed = json.loads((out / "categories.json").read_text())
    assert {each["name"] for each in listed if each["isthing"]} == things


@pytest.mark.parametrize(("flags", "things"), [([], {"sky", "tree"}), (["--things", "tree"], {"tree"})])
def test_what_no_table_calls_stuff_is_a_thing_until_things_are_named(run, tmp_path, flags, things):
    categorise(Ledger.open(run), "open", categories=[{"id": 1, "name": "sky"}, {"id": 2, "name": "tree"}])
    out = exported(run, tmp_path, "png", "--categories", "open", *flags)
    listed = json.loads((out / "categories.json").read_text())
    assert {each["name"] for each in listed if each["isthing"]} == things


@pytest.mark.parametrize(
    ("kind", "flags", "line"),
    [
        ("png", ["--categories", "kinds", "--things", "sky,cow"], "--things: kinds/1 has no 'cow'; it has sky, tree"),
        ("png", ["--stuff", "sky"], "--stuff names categories, which a table has: name that with --categories"),
        ("png", ["--categories", "kinds", "--stuff", "sky", "--things", "sky"], "--things and --stuff both name 'sky'"),
        ("png", ["--instances", "components"], "--instances: png has no place for them, only coco-segments"),
        ("coco-segments", ["--instances", "ridges"], "labelled without them (`diffseg label --ridges`)"),
        ("coco-panoptic", ["--instances", "blobs"], "--instances 'blobs': possible are segments, components, ridges"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, capsys, kind, flags, line):
    assert cli.run(["export", run, "--format", kind, "--output", str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--segments", "2"]])
def test_instances_are_parted_along_ridges_at_any_cut(tmp_path, capsys, flags):
    run = str(make_run(tmp_path, trees=CUT).store)
    out = exported(run, tmp_path, "coco-segments", "--instances", "ridges", *flags)
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    rows = {row["key"]: row for row in Ledger.open(run).rows(["key", "leaf_map", "ridges", "label_map"])}
    cut = Ledger.open(run) if not flags else None
    parted = 0
    for number, image in coco.imgs.items():
        row = rows[image["key"]]
        own = coco.loadAnns(coco.getAnnIds(number))
        total = sum(coco.annToMask(each).astype(int) for each in own)
        assert (total == 1).all()  # a partition
        if cut is None:
            continue
        labels, leaves = decode_label_map(row["label_map"]), decode_leaf_map(row["leaf_map"])
        parts = resize_labels(split(labels, leaves, np.frombuffer(row["ridges"], np.uint8)), total.shape)
        assert len(own) == parts.max() + 1
        for part, each in enumerate(own):
            assert masks.area(each["segmentation"]) == each["area"] == (parts == part).sum()
            assert (coco.annToMask(each) == (parts == part)).all()
            assert (at_source(labels)[parts == part] == each["segment_id"]).all()
        parted += len(own) - len(components(labels)[1])
    assert parted != 0 or flags
    capsys.readouterr()
    again = ["export", run, "--format", "coco-segments", "--output", str(out), *flags]
    assert cli.run(again) == 2
    assert "it was begun with --instances ridges" in capsys.readouterr().err
    assert cli.run([*again, "--instances", "ridges"]) == 0


def test_components_are_what_coco_segments_are_unless_something_else_is_asked_for(run, tmp_path):
    out = exported(run, tmp_path, "coco-segments")
    assert "instances" not in json.loads((out / "export.json").read_text())
    assert cli.run(["export", run, "--format", "coco-segments", "--output", str(out), "--instances", "components"]) == 0


@pytest.mark.parametrize("damage", [None, b"", b"123"])
def test_a_row_without_usable_ridges_is_named(tmp_path, damage):
    row = next(make_run(tmp_path, trees=CUT).rows()) | {"ridges": damage}
    labels = decode_label_map(row["label_map"])
    with pytest.raises(ConfigError, match=f"{row['shard']}, sample 0: no usable ridges"):
        instances_of("ridges", labels, row, labels)
