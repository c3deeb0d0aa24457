"""`diffseg evaluate --reproduce` from end to end: a random checkpoint in SD's layout, data sets as they unpack."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from diffseg import segmenter
from diffseg.config import SegmentConfig
from diffseg.evaluation.bootstrap import Interval
from infra.embedded.checkpoints import random_checkpoint
from jobs.shared import cli
from pipeline.errors import ConfigError
from pipeline.evaluation import reproduce
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.evaluation.reproduce import PUBLISHED, Comparison, open_photos
from pipeline.inputs.folder.file_list import files_of
from pipeline.run.ledger import Ledger
from tests.support.truths import lay, png

COCO = [f"{number:012d}" for number in (139, 724, 785, 872)]
AT = dict(zip([*COCO, "000000999999"], (10, 14, 66, 70, 40), strict=True))  # where label maps are parted
CITIES = ("frankfurt", "lindau", "munster")


def photo(number, kind, size=(80, 64)):
    """Two halves of noise, so that attention has something to tell apart."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 120, (size[1], size[0], 3))
    pixels[:, size[0] // 2 :] += 120
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def parted(left, right, at=40):
    """A label map of two values, parted at a column; of the 80 columns the protocol sees those from 8 to 72."""
    return png(np.repeat([[left] * at + [right] * (80 - at)], 64, 0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(random_checkpoint("sd1.4", tmp_path_factory.mktemp("model") / "sd", small=True))


@pytest.fixture
def coco(tmp_path):
    """COCO-Stuff as its two archives and the curated list unpack, with a photo that the list does not have."""
    files = {f"coco/images/val2017/{key}.jpg": photo(i, "JPEG") for i, key in enumerate(AT)}
    files |= {f"coco/stuffthingmaps/val2017/{key}.png": parted(0, 156, AT[key]) for key in AT}
    files |= {f"coco/stuffthingmaps/train2017/{COCO[0]}.png": b"not to be read"}
    files |= {f"coco/curated/val2017/{PROTOCOLS['coco-stuff-27'].listed}": "".join(f"{key}\n" for key in COCO).encode()}
    lay(tmp_path, files)
    return str(tmp_path / "coco")


@pytest.fixture
def cityscapes(tmp_path):
    files = {}
    for i, city in enumerate(CITIES):
        stem = f"{city}/{city}_{i:06d}_000019"
        files[f"city/leftImg8bit/val/{stem}_leftImg8bit.png"] = photo(i, "PNG")
        files[f"city/gtFine/val/{stem}_gtFine_labelIds.png"] = parted(7, 23) if i else parted(0, 3)
        files[f"city/gtFine/val/{stem}_gtFine_color.png"] = photo(i, "PNG")
    files["city/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"] = b"not to be read"
    lay(tmp_path, files)
    return str(tmp_path / "city")


def command(protocol, model, data, output, *more):
    own = ("--model", model, "--data", data, "--output", output, "--workers", "0")
    return ["evaluate", "--reproduce", protocol, *own, *more]


def refused(capsys, *arguments):
    assert cli.run(["evaluate", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()[-1]


def test_coco_is_labelled_as_published_and_compared_and_the_same_command_goes_on(
    coco, model, tmp_path, capsys, monkeypatch
):
    run = str(tmp_path / "run")

    assert cli.run(command("coco-stuff-27", model, coco, run, "--limit", "2", "--json")) == 1
    first = json.loads(capsys.readouterr().out)

    ledger = Ledger.open(run)
    assert ledger.run.segment == SegmentConfig(
        mode="paper", thresholds=(1.1,) * 3, timestep=300, image_size=512, output_size="source", dtype="float32"
    ).resolve(segmenter.PUBLISHED)
    rows = {row["key"]: row["label_map"] for row in ledger.rows(["key", "label_map"])}
    assert {key.rpartition("/")[2] for key in rows} < set(COCO)
    assert first["methods"]["run"]["summary"]["images"] == len(rows) == 2
    figures = first["methods"]["run"]["summary"]
    assert {name: one["published"] for name, one in first["published"].items()} == {"accuracy": 0.725, "miou": 0.436}
    assert all(one["own"] == figures[name] for name, one in first["published"].items())

    found = {name: one["own"]["value"] for name, one in first["published"].items()}
    monkeypatch.setitem(PUBLISHED, "coco-stuff-27", replace(PUBLISHED["coco-stuff-27"], photos=4))
    assert cli.run(command("coco-stuff-27", model, coco, run)) == 1
    shown = capsys.readouterr().out
    assert "complete: 4 rows, 4 ok" in shown
    assert "| accuracy | 0.725 " in shown
    again = {row["key"]: row["label_map"] for row in Ledger.open(run).rows(["key", "label_map"])}
    assert {key.rpartition("/")[2] for key in again} == set(COCO)
    whole = [
        max(AT[key] - 8, 72 - AT[key]) / 64 for key in COCO
    ]  # one segment an image: random weights merge everything
    assert f"| {np.mean(whole):.3f} ({min(whole):.3f} to " in shown
    assert cli.run(["evaluate", run, "--truth", coco, "--protocol", "coco-stuff-27"]) == 0
    assert capsys.readouterr().out.strip() in shown
    assert rows.items() < again.items()

    monkeypatch.setitem(PUBLISHED, "coco-stuff-27", replace(PUBLISHED["coco-stuff-27"], figures=found))
    assert cli.run(command("coco-stuff-27", model, coco, run, "--limit", "2", "--json")) == 0
    shown = capsys.readouterr()
    less = json.loads(shown.out)
    assert less["methods"] == first["methods"]
    assert all(one["agrees"] for one in less["published"].values())
    assert "is gone" not in shown.err


def test_cityscapes_is_compared_without_photos_whose_truth_is_void(cityscapes, model, tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    monkeypatch.setitem(PUBLISHED, "cityscapes-27", replace(PUBLISHED["cityscapes-27"], photos=3))

    assert cli.run(command("cityscapes-27", model, cityscapes, run, "--json")) == 1

    said = json.loads(capsys.readouterr().out)
    assert Ledger.open(run).run.segment.thresholds == (0.9,) * 3
    assert said["methods"]["run"]["summary"]["images"] == 2
    assert said["methods"]["run"]["left_out"] == {"a truth that ignores every pixel": 1}
    assert said["published"].keys() == {"miou"}
    assert (said["published"]["miou"]["published"], said["published"]["miou"]["agrees"]) == (0.212, False)


def test_a_photo_without_labels_is_exit_3_and_a_truth_that_cannot_be_read_is_exit_2(coco, model, tmp_path, capsys):
    lay(tmp_path, {f"coco/curated/val2017/{PROTOCOLS['coco-stuff-27'].listed}": f"{COCO[0]}\n".encode()})
    lay(tmp_path, {f"coco/images/val2017/{COCO[0]}.jpg": b"no photo"})
    assert cli.run(command("coco-stuff-27", model, coco, str(tmp_path / "run"), "--limit", "1")) == 3
    assert "1 undecodable" in capsys.readouterr().out

    lay(tmp_path, {f"coco/images/val2017/{COCO[0]}.jpg": photo(0, "JPEG")})
    lay(tmp_path, {f"coco/stuffthingmaps/val2017/{COCO[0]}.png": b"no label map"})
    assert cli.run(command("coco-stuff-27", model, coco, str(tmp_path / "other"), "--limit", "1", "--json")) == 2
    assert f"unreadable truth (such as {COCO[0]}" in capsys.readouterr().err


def test_data_that_is_not_the_published_set_is_refused_before_anything_is_labelled(coco, model, tmp_path, capsys):
    run = str(tmp_path / "run")

    def line(protocol, data, *more):
        return refused(capsys, *command(protocol, model, data, run, *more)[1:])

    assert "4 photos of coco-stuff-27 have a label map, wanted are 2,175: --limit" in line("coco-stuff-27", coco)
    (tmp_path / "coco/images/val2017" / f"{COCO[2]}.jpg").unlink()
    said = line("coco-stuff-27", coco, "--limit", "4")
    assert f"3 photos of coco-stuff-27 have a label map, wanted are 4; {COCO[2]} lacks its photo" in said
    assert "no label maps of cityscapes-27 among" in line("cityscapes-27", coco)
    assert "no such folder" in line("coco-stuff-27", str(tmp_path / "nowhere"))
    assert "published are coco-stuff-27, cityscapes-27" in line("voc", coco)
    assert "workers must be at least 0" in line("coco-stuff-27", coco, "--limit", "1", "--workers", "-1")
    assert not (tmp_path / "run").exists()


def test_that_the_same_command_resumes_is_said(coco, model, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.labelling.finish", interrupted)
    assert cli.run(command("coco-stuff-27", model, coco, str(tmp_path / "run"), "--limit", "1")) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reproduce", "coco-stuff-27", "--data", "x"), "needs --model (the paper's is sd1.4) and --data"),
        (("--reproduce", "coco-stuff-27", "--model", "sd1.4"), "needs --model (the paper's is sd1.4) and --data"),
        (("run", "--reproduce", "coco-stuff-27"), "leave these out"),
        (("--reproduce", "coco-stuff-27", "--truth", "x"), "leave these out"),
        (("--truth", "x", "--limit", "3"), "--limit belongs to --reproduce"),
        (("run",), "--truth is missing"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(capsys, options, message):
    assert message in refused(capsys, *options)


def test_fewer_photos_are_among_the_more(coco):
    row, protocol = PUBLISHED["coco-stuff-27"], PROTOCOLS["coco-stuff-27"]
    chosen = [open_photos(coco, protocol, row, limit)[1].listed or frozenset() for limit in (1, 2, 3, 4)]
    assert all(fewer < more for fewer, more in pairwise(chosen))
    shard, _ = open_photos(coco, protocol, row, 4)
    assert [file.name for file in files_of(shard)] == [f"images/val2017/{key}.jpg" for key in COCO]
    with pytest.raises(ConfigError, match="wanted are 5"):
        open_photos(coco, protocol, row, 5)


@pytest.mark.parametrize(
    ("published", "agrees"), [(0.4, True), (0.3996, True), (0.3994, False), (0.4504, True), (0.4506, False)]
)
def test_an_interval_is_widened_by_the_rounding_of_the_published_figure_alone(published, agrees):
    assert Comparison(published, Interval(0.42, 0.4, 0.45)).agrees == agrees


def test_published_settings_are_those_of_the_paper():
    assert {name: (row.photos, row.threshold) for name, row in PUBLISHED.items()} == {
        "coco-stuff-27": (2175, 1.1),
        "cityscapes-27": (500, 0.9),
    }
    assert set(reproduce.PUBLISHED) < set(PROTOCOLS)
