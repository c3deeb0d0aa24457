"""`diffseg evaluate` from end to end, on data sets small enough to check by hand or by a literal computation."""

import io
import json
import runpy
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from diffseg.evaluation.scores import score_image
from diffseg.types import Segment
from infra.scenes.scene import benchmark
from jobs.shared import cli
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.table import decode_rows
from pipeline.table.label_map import decode_label_map, encode_label_map
from tests.conftest import a_run, jpeg, write_shard
from tests.support.truths import lay, png

LEFT_RIGHT = np.repeat([[0] * 12 + [1] * 12], 16, 0)  # for photos of 16 x 24
TOP_BOTTOM = np.repeat([0] * 8 + [1] * 8, 24).reshape(16, 24)


def labels_of(tmp_path, label_maps: Mapping[str, np.ndarray | str], sizes=None, name="run"):
    """A run that gave these label maps; a word in place of one is the status of a failed row."""
    photos = [(key, {"jpg": jpeg(i)}) for i, key in enumerate(label_maps)]
    [shard] = pin([str(write_shard(tmp_path / f"{name}.tar", photos or [("none", {"jpg": b""})]))])
    ledger = Ledger.start(str(tmp_path / name), a_run(window=100), [shard])
    records = []
    for index, (key, label_map) in enumerate(label_maps.items()):
        if isinstance(label_map, str):
            records.append(LabelRecord(key, shard.id, index, label_map, "why"))
            continue
        height, width = (sizes or {}).get(key, label_map.shape)
        ids = range(int(label_map.max()) + 1)
        segments = tuple(Segment(i, int((label_map == i).sum()), (0, 0, 1, 1), 1.0) for i in ids)
        data = encode_label_map(label_map.astype(np.int32))
        records.append(LabelRecord(key, shard.id, index, OK, None, width, height, data, segments, 1.0, "0" * 64))
    if records:
        ledger.writer.commit(ShardTask(shard), 0, records, 0, 0.0)
    return str(tmp_path / name)


def truth_of(tmp_path, samples: Mapping[str, Mapping[str, bytes]]):
    return str(write_shard(tmp_path / "truth.tar", list(samples.items())))


def measured(capsys, *arguments):
    """The JSON of a command that succeeds."""
    assert cli.run(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def refused(capsys, *arguments):
    """What a command that fails says, in its one line."""
    assert cli.run(["evaluate", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    return line


def literal_protocol(pairs, num_classes=27):
    """The published protocol once more, with nothing of ours: crop, nearest-exact, one Hungarian matching an image."""
    tp, fp, fn = np.zeros((3, num_classes))
    for prediction, truth in pairs:
        crops = []
        for label_map in (prediction, truth):
            side = min(label_map.shape)
            top, left = (label_map.shape[0] - side) // 2, (label_map.shape[1] - side) // 2
            crop = torch.from_numpy(label_map[top : top + side, left : left + side].astype(np.float64))
            crops.append(torch.nn.functional.interpolate(crop[None, None], (512, 512), mode="nearest-exact")[0, 0])
        ours, theirs = (crop.long().flatten() for crop in crops)
        columns = max(num_classes, int(ours.max()) + 1)
        table = np.zeros((num_classes, columns))
        for c in range(num_classes):
            for s in ours[theirs == c].unique():
                table[c, s] = (ours[theirs == c] == s).sum()
        for c, s in zip(*linear_sum_assignment(-table), strict=True):
            tp[c] += table[c, s]
            fp[c] += table[:, s].sum() - table[c, s]
            fn[c] += table[c].sum() - table[c, s]
    with np.errstate(invalid="ignore"):
        iou = tp / (tp + fp + fn)
    return tp.sum() / (tp + fn).sum(), np.nanmean(iou), iou


def blobs(seed, shape, ids):
    """A few rectangles over each other."""
    random = np.random.default_rng(seed)
    drawn = np.full(shape, ids[0])
    for value in ids[1:]:
        top, left = random.integers(0, np.array(shape) // 2)
        height, width = random.integers(np.array(shape) // 4, np.array(shape) // 2)
        drawn[top : top + height, left : left + width] = value
    return drawn


def shift(label_map, ids):
    """A prediction: the truth moved a little, under ids of its own."""
    moved = np.roll(label_map, 3, 1)
    return np.searchsorted(sorted(ids), moved) if set(ids) >= set(np.unique(moved)) else moved


def test_a_miniature_coco_stuff_goes_through_the_whole_protocol(tmp_path, capsys):
    fine = {0: [0, 156, 123, 255], 1: [2, 148, 105], 2: [17, 181, 154, 255, 61]}
    shapes = {0: (48, 64), 1: (61, 40), 2: (50, 50)}
    keys = {i: f"{139 + i:012d}" for i in fine}
    values = {i: blobs(i, shapes[i], fine[i]) for i in fine}
    files = {f"annotations/val2017/{keys[i]}.png": png(values[i]) for i in fine}
    files |= {"annotations/val2017/000000999999.png": png(values[0])}  # not in the list
    files |= {f"curated/val2017/{PROTOCOLS['coco-stuff-27'].listed}": "".join(f"{keys[i]}\n" for i in fine).encode()}
    predictions = {keys[i]: shift(values[i], fine[i]) for i in fine}
    run = labels_of(tmp_path, {**predictions, "000000999999": predictions[keys[0]]})

    said = measured(capsys, run, "--truth", lay(tmp_path / "coco", files), "--protocol", "coco-stuff-27")

    coarse = np.full(256, -1)
    for index, members in enumerate((PROTOCOLS["coco-stuff-27"].classes or {}).values()):
        coarse[list(members)] = index
    accuracy, miou, iou = literal_protocol([(predictions[keys[i]], coarse[values[i]]) for i in fine])
    summary = said["methods"]["run"]["summary"]
    assert summary["images"] == 3
    assert summary["accuracy"]["value"] == pytest.approx(accuracy)
    assert summary["miou"]["value"] == pytest.approx(miou)
    assert 0.3 < miou < 1
    assert np.allclose([np.nan if x is None else x for x in summary["class_iou"]], iou, equal_nan=True)
    assert summary["miou"]["low"] <= miou <= summary["miou"]["high"]
    assert said["classes"][9] == "person"
    assert said["keys_without_truth"] == {"run": 1}


def test_a_miniature_cityscapes_goes_through_the_whole_protocol(tmp_path, capsys):
    ids = [3, 7, 11, 23, 26]
    files, predictions, pairs = {}, {}, []
    for i, city in enumerate(("lindau", "munster")):
        stem = f"{city}_{i:06d}_000019"
        values = blobs(i, (32, 64), ids)
        files[f"gtFine/val/{city}/{stem}_gtFine_labelIds.png"] = png(values)
        buffer = io.BytesIO()
        Image.fromarray((values * 9).astype(np.uint8)).convert("RGB").save(buffer, "PNG")
        files[f"leftImg8bit/val/{city}/{stem}_leftImg8bit.png"] = buffer.getvalue()
        predictions[f"leftImg8bit/val/{city}/{stem}_leftImg8bit"] = shift(values, ids)
        pairs.append((shift(values, ids), np.where(values < 7, -1, values - 7)))
    run = labels_of(tmp_path, predictions)
    arguments = (run, "--truth", lay(tmp_path / "city", files), "--protocol", "cityscapes-27")

    said = measured(capsys, *arguments, "--baseline", "one-segment")

    accuracy, miou, _ = literal_protocol(pairs)
    whole, _, _ = literal_protocol([(np.zeros_like(one), truth) for one, truth in pairs])
    assert said["methods"]["run"]["summary"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert said["methods"]["run"]["summary"]["miou"]["value"] == pytest.approx(miou)
    assert said["methods"]["one-segment"]["summary"]["accuracy"]["value"] == pytest.approx(whole)
    assert cli.run(["evaluate", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"| {accuracy:.3f} (" in shown
    assert "| road " in shown
    assert "never there" in shown


def test_several_annotators_baselines_and_humans_in_one_table(tmp_path, capsys):
    maps = {"a": (LEFT_RIGHT, TOP_BOTTOM), "b": (LEFT_RIGHT, LEFT_RIGHT)}
    samples = {
        key: {"jpg": jpeg(i), **{f"seg{n}.png": png(one) for n, one in enumerate(maps[key])}}
        for i, key in enumerate(maps)
    }
    run = labels_of(tmp_path, {"a": LEFT_RIGHT, "b": LEFT_RIGHT})
    table = tmp_path / "out" / "images.parquet"
    wanted = [x for name in ("humans", "one-segment", "kmeans", "felzenszwalb") for x in ("--baseline", name)]

    said = measured(capsys, run, "--truth", truth_of(tmp_path, samples), *wanted, "--table", str(table))

    covering = {name: method["summary"]["per_image"]["covering"] for name, method in said["methods"].items()}
    expected = [score_image(LEFT_RIGHT, maps[key]).covering for key in maps]
    assert list(covering) == ["run", "one-segment", "kmeans", "felzenszwalb", "humans"]
    assert covering["run"]["value"] == pytest.approx(np.mean(expected))
    assert covering["one-segment"]["value"] == 0.5
    assert covering["humans"]["value"] == pytest.approx(np.mean([score_image(LEFT_RIGHT, [TOP_BOTTOM]).covering, 1]))
    assert said["lead"]["over"]["one-segment"]["value"] == pytest.approx(np.mean(expected) - 0.5)
    rows, _ = decode_rows(table.read_bytes())
    assert len(rows) == 2 * 5
    assert [row["covering"] for row in rows if row["method"] == "run"] == pytest.approx(expected)
    assert sorted(path.name for path in table.parent.iterdir()) == ["images.parquet"]


def test_every_sample_is_scored_or_left_out_with_its_reason(tmp_path, capsys):
    good, photo = png(LEFT_RIGHT), jpeg(0)
    samples = [
        ("good", {"jpg": photo, "seg.png": good}),
        ("failed", {"jpg": photo, "seg.png": good}),
        ("absent", {"jpg": photo, "seg.png": good}),
        ("damaged", {"jpg": photo, "seg.png": good[:50]}),
        ("colour", {"jpg": photo, "seg.png": png(np.zeros((16, 24, 3)))}),
        ("larger", {"jpg": photo, "seg.png": png(np.zeros((16, 60)))}),
        ("mixed", {"jpg": photo, "seg0.png": good, "seg1.png": png(np.zeros((16, 60)))}),
        ("none", {"jpg": photo}),
        ("ignored", {"jpg": photo, "seg.png": png(np.full((16, 24), 255))}),
        ("twice", {"jpg": photo, "seg.png": good}),
        ("good", {"png": good}),
    ]
    truth = str(write_shard(tmp_path / "truth.tar", samples))
    label_maps = {key: LEFT_RIGHT for key, _ in samples if key not in ("absent", "failed", "twice")}
    run = labels_of(
        tmp_path,
        {**label_maps, "x/twice": LEFT_RIGHT, "y/twice": LEFT_RIGHT, "failed": "undecodable", "stranger": LEFT_RIGHT},
    )

    said = measured(capsys, run, "--truth", truth, "--ignore", "255", "--baseline", "one-segment")

    assert said["methods"]["run"]["left_out"] == {
        "failed in the run": 1,
        "no row in the run": 1,
        "unreadable truth": 2,
        "another size": 1,
        "annotators of different sizes": 1,
        "no label map in the truth": 1,
        "a truth that ignores every pixel": 1,
        "a key that repeats in the run": 1,
        "a key that repeats in the truth": 1,
    }
    assert said["methods"]["run"]["summary"]["images"] == 1
    assert said["methods"]["one-segment"]["summary"]["images"] == 4
    assert said["methods"]["run"]["examples"]["another size"] == "larger image (16, 24), truth (16, 60) (height, width)"
    assert said["keys_without_truth"] == {"run": 3}
    assert cli.run(["evaluate", run, "--truth", truth]) == 0
    assert "run: 9 of 11 left out: 2 unreadable truth (such as damaged" in capsys.readouterr().out


def test_a_baseline_without_images_is_left_out_and_says_so(tmp_path, capsys):
    truth = truth_of(tmp_path, {"a": {"seg.png": png(LEFT_RIGHT), "json": b"{}"}, "b": {"png": png(LEFT_RIGHT)}})
    run = labels_of(tmp_path, {"a": LEFT_RIGHT, "b": LEFT_RIGHT})

    said = measured(capsys, run, "--truth", truth, "--baseline", "kmeans")

    assert said["methods"]["kmeans"] == {
        "summary": None,
        "dataset_matching": None,
        "left_out": {"no image beside the truth": 2},
        "examples": {"no image beside the truth": "a"},
    }
    assert said["methods"]["run"]["summary"]["images"] == 2
    assert "no image beside the truth" in refused(capsys, "--truth", truth, "--baseline", "kmeans")


def test_more_segments_than_eight_bits_hold_are_compared_one_by_one(tmp_path, capsys):
    many = np.arange(16 * 24).reshape(16, 24)
    run = labels_of(tmp_path, {"a": many})

    same = measured(capsys, run, "--truth", truth_of(tmp_path, {"a": {"seg.png": png((many + 900).astype(np.uint16))}}))
    assert same["methods"]["run"]["summary"]["per_image"]["covering"]["value"] == 1
    assert same["methods"]["run"]["summary"]["per_image"]["segments"]["value"] == 384

    classes = measured(capsys, run, "--truth", truth_of(tmp_path, {"a": {"seg.png": png(many % 2)}}), "--classes", "2")
    assert classes["methods"]["run"]["summary"]["accuracy"]["value"] == 2 / 384


def test_a_label_map_smaller_than_its_photo_is_compared_in_the_frame_of_the_truth(tmp_path, capsys):
    large = np.kron(LEFT_RIGHT, np.ones((5, 5), int))
    run = labels_of(tmp_path, {"a": LEFT_RIGHT}, sizes={"a": (80, 120)})

    said = measured(capsys, run, "--truth", truth_of(tmp_path, {"a": {"seg.png": png(large)}}))

    assert said["methods"]["run"]["summary"]["per_image"]["covering"]["value"] == 1


def test_keys_meet_whole_or_by_the_last_part_of_their_path(tmp_path, capsys):
    pairs = {"a/1": LEFT_RIGHT, "b/1": TOP_BOTTOM, "c/2": LEFT_RIGHT}
    run = labels_of(tmp_path, pairs)
    same = truth_of(tmp_path, {key: {"seg.png": png(one)} for key, one in pairs.items()})
    folder = lay(tmp_path / "folder", {"1.png": png(LEFT_RIGHT), "2.png": png(LEFT_RIGHT)})

    whole = measured(capsys, run, "--truth", same)["methods"]["run"]
    last = measured(capsys, run, "--truth", folder)["methods"]["run"]

    assert whole["summary"]["images"] == 3
    assert whole["summary"]["per_image"]["covering"]["value"] == 1
    assert last["summary"]["images"] == 1
    assert last["left_out"] == {"a key that repeats in the run": 1}


def test_two_runs_are_compared_image_by_image(tmp_path, capsys):
    truth = truth_of(tmp_path, {key: {"seg.png": png(LEFT_RIGHT)} for key in "abc"})
    new = labels_of(tmp_path, {"a": LEFT_RIGHT, "b": TOP_BOTTOM, "c": LEFT_RIGHT}, name="new")
    old = labels_of(tmp_path, {"a": TOP_BOTTOM, "b": TOP_BOTTOM, "c": "undecodable"}, name="old")

    said = measured(capsys, new, "--truth", truth, "--against", old)

    assert said["methods"]["run"]["summary"]["per_image"]["ari"]["value"] > 0.6
    assert said["methods"]["against"]["left_out"] == {"failed in the run": 1}
    lead = said["lead"]["over"]["against"]
    assert lead["value"] == pytest.approx((1 - 1 / 3) / 2)  # c has no say: only one of them labelled it
    assert lead["low"] == pytest.approx(0)
    assert lead["high"] == pytest.approx(1 - 1 / 3)


def test_without_categories_one_matching_for_the_data_set_goes_by_ids(tmp_path, capsys):
    truth = truth_of(tmp_path, {key: {"seg.png": png(LEFT_RIGHT)} for key in "abc"})
    ids = {"a": LEFT_RIGHT, "b": 1 - LEFT_RIGHT, "c": 1 - LEFT_RIGHT}
    plain = labels_of(tmp_path, ids)
    options = ("--truth", truth, "--classes", "2", "--matching", "dataset")

    by_id = measured(capsys, plain, *options)["methods"]["run"]

    assert by_id["summary"]["accuracy"]["value"] == 1
    assert by_id["dataset_matching"]["accuracy"] == pytest.approx(2 / 3)


def test_the_worst_images_come_first_in_the_gallery(tmp_path, capsys):
    truth = truth_of(
        tmp_path, {key: {"jpg": jpeg(0), "seg.png": png(LEFT_RIGHT)} for key in ("flawless", "poor", "bad")}
    )
    poor = np.where(np.arange(24) < 9, 0, 1)[None].repeat(16, 0)
    run = labels_of(tmp_path, {"flawless": LEFT_RIGHT, "poor": poor, "bad": TOP_BOTTOM})
    page = tmp_path / "worst.html"

    assert cli.run(["evaluate", run, "--truth", truth, "--gallery", str(page), "--worst", "2"]) == 0

    text = page.read_text()
    assert text.index("run, covering 0.333") < text.index("run, covering 0.775")
    assert "flawless" not in text
    assert text.count("truth 1 of 1") == 2
    assert f"wrote {page}" in capsys.readouterr().err


def test_an_image_beside_the_truth_that_cannot_be_decoded_stops_nothing(tmp_path, capsys):
    truth = truth_of(tmp_path, {key: {"jpg": b"no photo", "seg.png": png(LEFT_RIGHT)} for key in "ab"})
    run = labels_of(tmp_path, {"a": LEFT_RIGHT, "b": LEFT_RIGHT})
    options = ("--truth", truth, "--baseline", "kmeans", "--gallery", str(tmp_path / "page.html"))

    said = measured(capsys, run, *options)

    assert said["methods"]["kmeans"]["left_out"] == {"unreadable image": 2}
    assert said["methods"]["run"]["summary"]["images"] == 2


@pytest.fixture
def twenty(tmp_path):
    """What measures twenty images with a baseline: the arguments."""
    truth = truth_of(tmp_path, {f"{i}": {"jpg": jpeg(i), "seg.png": png(LEFT_RIGHT)} for i in range(20)})
    run = labels_of(tmp_path, {f"{i}": np.roll(LEFT_RIGHT, i, 1) for i in range(20)})
    return (run, "--truth", truth, "--baseline", "kmeans")


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(twenty, capsys):
    here = measured(capsys, *twenty)
    assert measured(capsys, *twenty, "--processes", "2") == here


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_ray_changes_nothing_but_the_place(twenty, capsys, monkeypatch):
    from pipeline.cluster import Cluster

    here = measured(capsys, *twenty)
    with Cluster() as private, monkeypatch.context() as patch:
        patch.setattr(Cluster, "__enter__", lambda self: private)  # one that is there already
        patch.setattr(Cluster, "__exit__", lambda *_: None)
        assert measured(capsys, *twenty, "--ray-address", "there") == here


def test_processes_and_a_ray_at_once_are_refused(twenty, capsys):
    assert "--processes 2" in refused(capsys, *twenty, "--processes", "2", "--ray-address", "127.0.0.1:1")


def test_humans_agree_with_each_other_on_real_photos(photos, tmp_path, capsys):
    (tmp_path / "some.txt").write_text("100075\n100080\n100098\n")

    said = measured(
        capsys,
        "--truth",
        str(photos / "bsds-train-00000.tar"),
        "--baseline",
        "humans",
        "--list",
        str(tmp_path / "some.txt"),
    )

    humans = said["methods"]["humans"]["summary"]
    assert humans["images"] == 3
    assert 0.5 < humans["per_image"]["covering"]["value"] < 0.95


@pytest.fixture
def simple(tmp_path):
    """A run and a truth that fit."""
    return labels_of(tmp_path, {"a": LEFT_RIGHT}), truth_of(tmp_path, {"a": {"seg.png": png(LEFT_RIGHT)}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "voc"), "no protocol 'voc'; there are regions, coco-stuff-27, cityscapes-27"),
        (("--baseline", "watershed"), "no baseline 'watershed'; there are kmeans, felzenszwalb, one-segment, humans"),
        (("--baseline", "humans", "--classes", "2"), "humans needs regions by several annotators"),
        (("--matching", "dataset"), "--matching takes image, or dataset where the truth has classes, got 'dataset'"),
        (("--matching", "greedy"), "got 'greedy'"),
        (("--truth-key", "depth.png"), "no image could be scored: 1 no label map in the truth (such as a)"),
        (("--list", "nowhere.txt"), "nowhere.txt: no such list of keys"),
    ],
)
def test_a_wrong_option_is_one_clear_line(simple, capsys, options, message):
    run, truth = simple

    assert message in refused(capsys, run, "--truth", truth, *options)


def test_a_run_and_a_truth_that_do_not_meet_are_refused(simple, tmp_path, capsys):
    _, truth = simple
    other = labels_of(tmp_path, {"photo-7": LEFT_RIGHT}, name="other")

    line = refused(capsys, other, "--truth", truth)

    assert "has none of the 1 keys of the truth: keys are like 'photo-7' here and like 'a' there" in line


def test_an_empty_run_no_run_and_no_truth_are_refused(simple, tmp_path, capsys):
    run, truth = simple
    empty = labels_of(tmp_path, {}, name="empty")

    assert "the run has no rows yet" in refused(capsys, empty, "--truth", truth)
    assert "no run here" in refused(capsys, str(tmp_path), "--truth", truth)
    assert "no such shard" in refused(capsys, run, "--truth", str(tmp_path / "nowhere.tar"))
    assert "no such folder" in refused(capsys, run, "--truth", str(tmp_path / "nowhere"))
    assert "nothing to measure: name a run, or --baseline" in refused(capsys, "--truth", truth)


def test_a_truth_cut_short_is_refused_rather_than_measured_in_part(simple, tmp_path, capsys):
    run, truth = simple
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(truth).read_bytes()[:700])

    assert f"{cut}: the truth is not whole" in refused(capsys, run, "--truth", str(cut))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(simple, tmp_path, capsys):
    run, _ = simple
    (tmp_path / "file").write_text("")

    for option in ("--table", "--gallery"):
        line = refused(capsys, run, "--truth", "never-read.tar", option, str(tmp_path / "file" / "out"))
        assert f"{tmp_path}/file" in line


def test_only_humans_make_no_gallery(simple, tmp_path, capsys):
    _, truth = simple

    line = refused(capsys, "--truth", truth, "--baseline", "humans", "--gallery", str(tmp_path / "page.html"))

    assert "--gallery shows a run or a baseline" in line


def test_the_reporting_scenes_are_a_shard_that_is_its_own_truth(tmp_path, capsys):
    path = Path(__file__).parents[2] / "infra" / "benchmarks" / "write_scenes.py"
    shard = tmp_path / "scenes.tar"
    runpy.run_path(str(path))["main"](shard, 4)

    said = measured(capsys, "--truth", str(shard), "--baseline", "one-segment")

    [scene] = benchmark(1)
    whole = said["methods"]["one-segment"]["summary"]
    assert whole["images"] == 4
    assert whole["per_image"]["covering"]["value"] < 1
    with tarfile.open(shard) as archive:
        member = archive.extractfile("0000.seg.png")
        assert member is not None
        truth = decode_label_map(member.read())
    assert np.array_equal(truth, scene.truth)
