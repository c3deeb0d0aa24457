"""People in the loop: images selected, corrected as annotation tools write them, imported, and read by every reader."""

import io
import json
import re
import zipfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffseg.cut import quality
from diffseg.types import IGNORE, Segment
from jobs.shared import cli
from pipeline.datasets import Example, RunDataset
from pipeline.derived.corrections import CORRECTED
from pipeline.derived.joined import open_run
from pipeline.evaluation.truth import corrected_truth
from pipeline.exports.rle import decode, encode
from pipeline.messages import ShardTask
from pipeline.review.given import read_given
from pipeline.review.select import select
from pipeline.review.take import IDENTITY
from pipeline.run.ledger import Ledger
from pipeline.storage.names import generated_name
from pipeline.table.label_map import decode_label_map
from pipeline.table.records import decode_rows
from tests.categories.materials import material_run, write_truth
from tests.datasets.test_joined import categorise, predict
from tests.support.labelled import at_source, label_map, make_run, record

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
KINDS = ("--categories", "kinds")
MATERIAL = ("sky", "tree", "car", "road")


def named_run(folder):
    ledger = make_run(folder)
    categorise(ledger)
    return str(ledger.store)


@pytest.fixture
def run(tmp_path):
    return named_run(tmp_path)


def selected(run, folder):
    """What `select` writes of all nine images for CVAT."""
    assert cli.run(["select", run, "--output", str(folder / "work"), *KINDS]) == 0
    return folder / "work" / "cvat" / "annotations_train.xml"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A run and what was selected of it, for tests in which nothing is taken back."""
    folder = tmp_path_factory.mktemp("untouched")
    run = named_run(folder)
    return run, selected(run, folder)


def exported(run, tmp_path, name, *flags):
    out = tmp_path / name
    assert cli.run(["export", run, "--format", "coco-segments", "--output", str(out), *KINDS, *flags]) == 0
    document = json.loads((out / "annotations" / "instances_train.json").read_text())
    return {image["key"]: (image, [a for a in document["annotations"] if a["image_id"] == image["id"]])
            for image in document["images"]}  # fmt: skip


def element(mask: np.ndarray, label: str) -> str:
    """A mask as CVAT writes it: run lengths of its box, the attributes in CVAT's order."""
    rows, columns = np.nonzero(mask)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    runs = [(inside, len(list(same))) for inside, same in groupby(mask[box].ravel().tolist())]
    counts = ", ".join(str(length) for _, length in ([(False, 0)] if runs[0][0] else []) + runs)
    height, width = mask[box].shape
    place = f'left="{columns.min()}" top="{rows.min()}" width="{width}" height="{height}"'
    return f'<mask label="{label}" source="manual" occluded="0" rle="{counts}" {place} z_order="0">\n    </mask>'


def with_masks(text: str, key: str, masks: list[str]) -> str:
    """A document with these elements in place of those of an image."""
    return re.sub(rf'(<image [^>]*name="{key}_s-[^>]*>).*?(</image>)', rf"\1{chr(10).join(masks)}\2", text, flags=re.S)


def test_a_mask_and_a_name_edited_in_cvat_are_in_the_next_export_and_only_they(run, tmp_path):
    file = selected(run, tmp_path)
    before = exported(run, tmp_path, "before")
    labels, text = at_source(label_map(1)), file.read_text()
    [(first, end)] = [each.span(2) for each in re.finditer(r'(name="e_s.*?<mask label=")(\w+)', text, re.S)]
    assert text[first:end] == "sky"
    text = text[:first] + "tree" + text[end:]  # the name of the first segment of e; stuff becomes a thing
    kinds = [each["category"] for each in list(open_run(run, categories="kinds").rows(["segments"]))[1]["segments"]]
    tree, edited = kinds.index("tree"), labels.copy()
    pixels = np.flatnonzero(labels == tree)
    edited.ravel()[pixels[: len(pixels) // 2]] = IGNORE  # half of it becomes void
    masks = [element(edited == n, kind or "object") for n, kind in enumerate(kinds)]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("annotations_train.xml", with_masks(text, "b", masks))
        packed.writestr("images/", b"")
    (tmp_path / "back.zip").write_bytes(archive.getvalue())
    assert cli.run(["import", run, str(tmp_path / "back.zip"), *KINDS]) == 0
    after = exported(run, tmp_path, "after")
    assert before.keys() == after.keys()
    for key in before.keys() - set("be"):
        assert [without_id(each) for each in after[key][1]] == [without_id(each) for each in before[key][1]]
        assert after[key][0] == before[key][0]
    unchanged = [without_id(each) for each in before["b"][1] if each["segment_id"] != tree]
    assert [without_id(each) for each in after["b"][1] if each["segment_id"] != tree] == unchanged
    area = sum(each["area"] for each in after["b"][1] if each["segment_id"] == tree)
    assert 0 < area == (edited == tree).sum() < (labels == tree).sum()
    assert {each["score"] for each in after["b"][1] if each["segment_id"] == tree} == {1.0}
    was, now = ([without_id(each) for each in found["e"][1]] for found in (before, after))
    assert [each for each in now if each in was] == was
    assert {each["segment_id"] for each in now if each not in was} == {0}
    assert {(each["category_id"], each["score"]) for each in now if each not in was} == {(2, 1.0)}


def without_id(annotation: dict[str, Any]) -> dict[str, Any]:
    """Ids count on through an export."""
    return {name: value for name, value in annotation.items() if name != "id"}


def corrected(run, tmp_path, labels=None, names=("tree", "sky"), key="a", index=0, shard=0, flags=KINDS):
    """Import an image that has two segments now: its label map, and those labels."""
    if labels is None:
        labels = np.zeros((18, 24), int)
        labels[5:9, 3:20], labels[17] = 1, IGNORE
    own = list(Ledger.open(run).shards)[shard]
    masks = "".join(element(labels == n, name) for n, name in enumerate(names))
    image = f'<image id="0" name="x/{generated_name(key, own, index)}.png" width="24" height="18">{masks}</image>'
    (tmp_path / "one.xml").write_text(f"<annotations>{image}</annotations>")
    assert cli.run(["import", run, str(tmp_path / "one.xml"), *flags]) == 0
    return labels


def test_every_reader_has_what_people_want_by_itself_and_can_do_without(run, tmp_path, capsys):
    plain = list(open_run(run, categories="kinds").rows())
    labels = corrected(run, tmp_path)
    ledger = open_run(run, categories="kinds")
    rows = list(ledger.rows())
    assert [CORRECTED in row for row in rows] == [True] + [False] * 8
    assert rows[1:] == plain[1:]
    assert (decode_label_map(rows[0]["label_map"]) == labels).all()
    segments = [Segment(**each | {"box": tuple(each["box"])}) for each in rows[0]["segments"]]
    assert [(each.area, each.category, each.score) for each in segments] == [(340, "tree", 1.0), (68, "sky", 1.0)]
    assert segments[1].box == (3, 5, 17, 4)
    assert (rows[0]["num_segments"], rows[0]["quality"]) == (2, quality(segments))
    assert [row["key"] for row in ledger.rows(["key"], filter=None)] == [row["key"] for row in plain]
    found = json_of(capsys, "status", run, "--detail", "--json", "--categories", "kinds")["detail"]
    assert found["derived"]["corrections/1"].startswith("1 of 3 windows")
    [histogram] = [each for each in found["histograms"] if each["title"] == "Segments an image"]
    assert sum(histogram["counts"][:3]) == 1
    dataset = RunDataset[Example](run, categories="kinds", where="num_segments == 2")
    assert len(dataset) == 1
    one = dataset[0]
    assert isinstance(one, Example)
    assert (one.label_map.numpy() == labels).all()
    assert list(open_run(run, categories="kinds", corrections="none").rows()) == plain
    assert cli.run(["preview", run, "--output", str(tmp_path / "page.html")]) == 0
    assert '["corrected by people","corrections/1"]' in (tmp_path / "page.html").read_text()
    assert list(Ledger.open(run).rows(stored=True)) == list(ledger.rows(stored=True))


def test_an_export_goes_on_with_the_corrections_that_it_began_with(run, tmp_path, capsys):
    corrected(run, tmp_path)
    export = ["export", run, "--format", "png", "--output", str(tmp_path / "out")]
    assert cli.run(export) == 0
    corrected(run, tmp_path, key="b", index=1)
    assert cli.run(export) == 2
    assert "corrections: corrections/1 there, corrections/2 here" in capsys.readouterr().err
    assert cli.run([*export, "--corrections", "corrections/1"]) == 0
    assert cli.run([*export, "--corrections", "corrections/7"]) == 2
    assert "no revision '7'" in capsys.readouterr().err


def json_of(capsys, *arguments):
    capsys.readouterr()
    assert cli.run(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_second_import_keeps_the_first_and_a_window_labelled_again_keeps_both(run, tmp_path):
    first = corrected(run, tmp_path)
    second = corrected(run, tmp_path, np.where(first == 1, 0, 1 - (first == IGNORE) * 2), key="b", index=1)
    third = corrected(run, tmp_path, second, key="h", index=1, shard=1)
    ledger = Ledger.open(run)
    shard = next(iter(ledger.shards.values()))
    rows = [record(key, shard.id, i, label_map(60 + i)) for i, key in enumerate("abcd")]
    ledger.writer.commit(ShardTask(shard, 0, 0, 1), 0, rows, 0, 0.0)
    found = {row["key"]: row for row in open_run(run).rows() if CORRECTED in row}
    assert found.keys() == set("abh")
    for key, labels in (("a", first), ("b", second), ("h", third)):
        assert parted_alike(decode_label_map(found[key]["label_map"]), labels)
    assert [CORRECTED in row for row in open_run(run, corrections="corrections@1").rows()] == [True] + [False] * 8
    corrected(run, tmp_path, second)
    assert parted_alike(decode_label_map(next(open_run(run).rows())["label_map"]), second)


def parted_alike(one, other):
    """Whether two label maps have the same segments, whatever their ids."""
    ids = [len(np.unique(each)) for each in (one, other)]
    return ids == [len(np.unique(np.stack([one, other]).reshape(2, -1), axis=1).T)] * 2


def test_categories_are_renamed_merged_and_dropped_everywhere(run, tmp_path, capsys):
    corrected(run, tmp_path, names=("tree", "boat"))
    assert "new categories: boat" in capsys.readouterr().out
    listed = [(each.id, each.name, each.thing) for each in open_run(run, categories="kinds").categories_table]
    assert listed[:2] == [(1, "sky", False), (2, "tree", True)]
    assert listed[-1][1:] == ("boat", None)
    assert cli.run(["import", run, "--rename", "sky=air", "--rename", "boat=tree", *KINDS]) == 0
    assert cli.run(["import", run, "--rename", "air=heaven", "--drop", "never there", *KINDS]) == 0
    ledger = open_run(run, categories="kinds")
    assert [(each.id, each.name) for each in ledger.categories_table] == [(1, "heaven"), (2, "tree")]
    now = [[each["category"] for each in row["segments"]] for row in ledger.rows(["segments"])]
    plain = open_run(run, categories="kinds", corrections="none")
    old = [[each["category"] for each in row["segments"]] for row in plain.rows(["segments"])]
    assert now[0] == ["tree", "tree"]
    assert now[1:] == [[{"sky": "heaven"}.get(each, each) for each in row] for row in old[1:]]
    corrected(run, tmp_path, names=("sky", "tree"), key="b", index=1)  # a file that still has the old name
    row = list(open_run(run, categories="kinds").rows())[1]
    assert {each["category"] for each in row["segments"]} == {"heaven", "tree"}
    own = open_run(run, categories="corrections")
    assert [each.name for each in own.categories_table] == ["tree", "heaven"]
    found = [{each["category"] for each in row["segments"]} for row in own.rows(["segments"])]
    assert found[1:3] == [{"heaven", "tree"}, {None}]


@pytest.fixture
def taught(tmp_path, capsys):
    """A run of which six images were corrected to their materials, and the folder of these."""
    run, truth = str(material_run(tmp_path).store), write_truth(tmp_path, 6)
    work = tmp_path / "work"
    assert cli.run(["export", run, "--format", "cvat", "--output", str(work), "--no-images"]) == 0
    text = (work / "annotations_train.xml").read_text()
    for number in range(6):
        labels = np.asarray(Image.open(truth / f"a{number}.png")).astype(int)
        text = with_masks(text, f"a{number}", [element(labels == n, MATERIAL[n]) for n in np.unique(labels)])
    (tmp_path / "back.xml").write_text(text)
    assert cli.run(["import", run, str(tmp_path / "back.xml")]) == 0
    assert "10 images that are as they were" in capsys.readouterr().err
    return run, truth


def test_calibrate_learns_from_what_people_corrected(taught, capsys):
    run, truth = taught
    by_hand = json_of(capsys, "calibrate", run, "--truth", str(truth), "--json", "--name", "hand")
    found = json_of(capsys, "calibrate", run, "--truth", "corrections", "--json", "--name", "learnt")
    assert found["images"] == 6
    for name in ("auroc", "error", "segments"):
        assert found[name] == pytest.approx(by_hand[name], nan_ok=True)


@pytest.mark.slow
def test_categories_learn_from_what_people_corrected(taught, capsys):
    made = json_of(capsys, "categories", taught[0], "--truth", "corrections", "--name", "learnt", "--json")
    assert [each["name"] for each in made["categories"]] == sorted(MATERIAL)
    assert made["expected"]["images"] == 6
    assert made["expected"]["accuracy"] > 0.9


def test_select_prefers_low_scores_that_differ_and_never_what_was_corrected(tmp_path, capsys):
    run = str(material_run(tmp_path).store)
    ledger = open_run(run)
    chosen = select(ledger, 6, 0)
    assert len(set(chosen)) == 6
    quality_of = {(row["shard"], row["index"]): row["quality"] for row in ledger.rows()}
    assert quality_of[chosen[0]] == min(quality_of.values())
    assert chosen == select(ledger, 6, 0)
    assert len(select(ledger, 99, 0)) == 16
    found = json_of(capsys, "select", run, "--count", "3", "--output", str(tmp_path / "w"), "--json")
    assert [(each["shard"], each["index"]) for each in found["images"]] == chosen[:3]
    names = [generated_name(row["key"], row["shard"], row["index"]) for row in ledger.rows()
             if (row["shard"], row["index"]) in chosen[:3]]  # fmt: skip
    assert sorted(path.stem for path in (tmp_path / "w" / "cvat" / "images").iterdir()) == sorted(names)
    assert (tmp_path / "w" / "index.html").read_text().count('"key"') >= 3
    assert cli.run(["import", run, str(tmp_path / "w" / "cvat" / "annotations_train.xml")]) == 2
    shards = list(ledger.shards)
    corrected(
        run, tmp_path, names=("sky", "tree"), key="x", index=chosen[0][1], shard=shards.index(chosen[0][0]), flags=()
    )
    assert set(select(open_run(run), 99, 0)) == set(select(ledger, 99, 0)) - {chosen[0]}


def test_of_a_run_without_vectors_scores_alone_select_and_it_says_so(run, tmp_path, capsys):
    predict(Ledger.open(run))
    assert cli.run(["select", run, "--count", "4", "--output", str(tmp_path / "w"), "--calibration", "mine"]) == 0
    assert "without vectors: chosen by scores alone" in capsys.readouterr().err
    ledger = open_run(run, calibration="mine")
    quality_of = {(row["shard"], row["index"]): row["quality"] for row in ledger.rows()}
    chosen = select(ledger, 4, 0)
    assert [quality_of[each] for each in chosen] == sorted(quality_of.values())[:4]


def coco(run, tmp_path, **changed):
    labels = np.where(np.arange(24) < 10, 0, 1) * np.ones((18, 1), int)
    [left, right] = [mask for mask, _ in encode(labels.astype(np.int32))]
    name = generated_name("a", next(iter(Ledger.open(run).shards)), 0)
    document = {
        "images": [{"id": 7, "file_name": f"{name}.png", "width": 24, "height": 18}],
        "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "tree"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": left},
            {"image_id": 7, "category_id": 2, "segmentation": right},
        ],
    } | changed
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return labels, document, tmp_path / "coco.json"


@pytest.mark.parametrize(
    "right",
    [
        None,
        [[10, 0, 24, 0, 24, 18, 10, 18]],
        [[10, 0, 12, 0, 12, 18, 10, 18], [12, 0, 24, 0, 24, 18, 12, 18]],
        {"size": [18, 24], "counts": [180, 252]},
    ],
)
def test_coco_instances_are_taken_with_run_lengths_and_polygons(run, tmp_path, right):
    labels, document, path = coco(run, tmp_path)
    if right is not None:
        document["annotations"][1]["segmentation"] = right
        path.write_text(json.dumps(document))
    [given] = read_given(str(path))
    assert (given.label_map == labels).all()
    assert given.categories == ("sky", "tree")
    assert cli.run(["import", run, str(path), *KINDS]) == 0
    row = next(open_run(run, categories="kinds").rows())
    assert parted_alike(decode_label_map(row["label_map"]), labels)
    assert sorted(each["category"] for each in row["segments"]) == ["sky", "tree"]


def test_masks_are_again_what_their_run_lengths_were_made_of():
    for number in range(20):
        random = np.random.default_rng(number)
        regions = random.integers(-1, 4, random.integers(1, 30, 2)).repeat(20, 0).repeat(3, 1).astype(np.int32)
        for region, (mask, _) in enumerate(encode(regions)):
            assert (decode(mask, regions.shape) == (regions == region)).all()


def test_a_polygon_of_cvat_above_a_mask_covers_it(run, tmp_path):
    name = generated_name("a", next(iter(Ledger.open(run).shards)), 0)
    whole = element(np.ones((18, 24), bool), "sky")
    polygon = '<polygon label="tree" points="2.0,3.0;12.0,3.0;12.0,9.0;2.0,9.0" z_order="1"/>'
    path = tmp_path / "p.xml"
    path.write_text(
        f'<annotations><image name="{name}.png" width="24" height="18">{polygon}{whole}</image></annotations>'
    )
    [given] = read_given(str(path))
    assert given.categories == ("tree", "sky")
    assert np.argwhere(given.label_map == 0).tolist() == [[y, x] for y in range(3, 9) for x in range(2, 12)]


def test_what_is_withdrawn_is_corrected_for_no_reader_and_a_purge_deletes_its_corrections(run, tmp_path, capsys):
    corrected(run, tmp_path)
    corrected(run, tmp_path, key="b", index=1)
    (tmp_path / "keys.txt").write_text("a\n")
    assert cli.run(["withdraw", run, "--keys", str(tmp_path / "keys.txt")]) == 0
    assert [row["key"] for row in open_run(run).rows() if CORRECTED in row] == ["b"]
    assert [each.key for each in corrected_truth(run)[0]] == ["b"]
    folder = Path(run) / "derived" / "corrections"
    assert len(list(folder.iterdir())) == 2
    assert cli.run(["withdraw", run, "--keys", str(tmp_path / "keys.txt"), "--purge"]) == 0
    [left] = folder.rglob("*.parquet")
    assert left.parent.name == "3"
    assert [row["key"] for row in decode_rows(left.read_bytes())[0]] == ["b"]
    assert [row["key"] for row in open_run(run).rows() if CORRECTED in row] == ["b"]
    assert [path.parent.name for path in folder.rglob("note.json")] == ["3"]
    assert cli.run(["withdraw", run, "--keys", str(tmp_path / "keys.txt"), "--purge"]) == 0
    assert [path.parent.name for path in folder.rglob("*.parquet")] == ["3"]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotations>&c;</annotations>'


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda text: text[:200], "no element found|unclosed"),
        (lambda text: text.replace('width="24" height="18">', 'width="25" height="18">', 1), r"photo is \(18, 24\)"),
        (lambda text: text.replace("_0.png", "_77.png", 1), "has no labels in"),
        (lambda text: text.replace('name="a_s', 'name="b_q', 1).replace("s-0-", "s-0-0", 1), "no image of this run"),
        (lambda text: text.replace("<label><name>tree<", "<label><name>sky<", 1), "category 'sky' is there twice"),
        (lambda text: re.sub(r"(<image.*?</image>)", r"\1\1", text, count=1, flags=re.S), "is there twice"),
        (lambda text: re.sub(r"(<mask.*?/>)", r"\1\1", text, count=1), "a mask of 'sky': it overlaps another"),
        (lambda text: text.replace('rle="0, ', 'rle="1, ', 1), "a mask of .sky.: run lengths of another image"),
        (lambda text: text.replace('left="0"', 'left="9"', 1), "a mask of .sky.: 24 x 18 at 9, 0 are not in the image"),
        (lambda text: re.sub('width="24" h', 'width="99999999" h', text), "photo|not in the image|pixels"),
        (lambda text: text.replace('left="0"', 'left="inf"', 1), "cannot convert float infinity"),
        (lambda text: re.sub("<mask", "<box", text, count=1), "a box, where masks and polygons are labels|mismatched"),
        (lambda text: BOMB, "neither CVAT"),
        (lambda text: "PK\3\4nonsense", "neither CVAT"),
        (lambda text: '{"images": []}', "no 'categories'"),
        (lambda text: "", "neither CVAT"),
        (lambda text: text.replace('width="24" height="18">', 'width="99999" height="99999">', 1), "99999 x 99999"),
        (lambda text: re.sub("<mask.*?/>", "", text), "no image is otherwise"),
        (lambda text: text, "no image is otherwise"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_one_line_and_nothing_is_written(untouched, tmp_path, capsys, change, answer):
    run, file = untouched
    (tmp_path / "bad").write_text(change(file.read_text()))
    capsys.readouterr()
    assert cli.run(["import", run, str(tmp_path / "bad"), *KINDS]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert re.search(answer, line)
    assert not (Path(run) / "derived" / "corrections").exists()


@pytest.mark.parametrize("name", [5, None, {}, ["sky"], "half a letter \ud800"])
@pytest.mark.parametrize("where", ["name", "file_name"])
def test_names_of_coco_that_are_no_text_are_one_line(run, tmp_path, capsys, where, name):
    _, document, path = coco(run, tmp_path)
    document["categories" if where == "name" else "images"][0][where] = name
    path.write_text(json.dumps(document))
    assert cli.run(["import", run, str(path), *KINDS]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "coco.json: neither CVAT" in line


def test_categories_of_one_id_are_one_line_and_many_take_no_time(run, tmp_path, capsys):
    many = [{"id": number, "name": str(number)} for number in range(100_000)]
    for categories, answer in (
        ([{"id": 1, "name": "sky"}, {"id": 1, "name": "sea"}], "1 is there twice"),
        (many, None),
    ):
        _, _, path = coco(run, tmp_path, categories=categories)
        assert cli.run(["import", run, str(path), *KINDS]) == (2 if answer else 0)
        assert not answer or answer in capsys.readouterr().err


def test_bombs_and_hostile_masks_of_coco_are_refused(run, tmp_path, capsys, monkeypatch):
    _, document, path = coco(run, tmp_path)
    for bad, answer in (
        ({"size": [18, 24], "counts": [180, 253]}, "run lengths of another image"),
        ({"size": [18, 25], "counts": "11"}, "run lengths of another image"),
        ({"size": [18, 24], "counts": "\x7f\x7f\x7foooo"}, "'tree': no run lengths"),
        ({"size": [18, 24], "counts": "oooooooo"}, "'tree': no run lengths"),
        ({"size": [18, 24], "counts": "11"}, "run lengths of another image"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "no polygons inside the image"),
        ([[0, 0, 1, 0]], "no polygons inside the image"),
        ([], "no polygons inside the image"),
        ("abc", "tree"),
        ([["x"]], "tree"),
        ([[0, 0, 24, 0, 24, 18, 0, 18]], "overlap"),
    ):
        document["annotations"][1]["segmentation"] = bad
        path.write_text(json.dumps(document))
        assert cli.run(["import", run, str(path), *KINDS]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert answer in line
    monkeypatch.setattr("pipeline.review.given.LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("annotations_train.xml", b"<a>" + b" " * 10**6)
    assert cli.run(["import", run, str(tmp_path / "bomb.zip"), *KINDS]) == 2
    assert "1,000,003 bytes, more than 10,000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ([], "give one of them"),
        (["x.xml", "--drop", "sky"], "give one of them"),
        (["--rename", "sky"], "'sky' is there twice, or to have no name"),
        (["--rename", "sky=a", "--drop", "sky"], "'sky' is there twice"),
        (["--rename", "sea=a"], "has no category 'sea'; there are never there, sky, tree"),
        (["none.xml"], "none.xml: no such file"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(untouched, capsys, flags, answer):
    assert cli.run(["import", untouched[0], *flags, *KINDS]) == 2
    assert answer in capsys.readouterr().err


def test_an_image_without_its_number_in_its_name_is_refused(tmp_path):
    for text in ("a.png", "a_1.png", "a-0123456789ab.png"):
        assert IDENTITY.search(text.removesuffix(".png")) is None
