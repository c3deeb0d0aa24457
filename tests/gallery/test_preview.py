import base64
import io
import json
import re
import webbrowser
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffseg.types import Segment
from jobs.preview import write_preview
from jobs.shared import cli
from pipeline.errors import ConfigError
from pipeline.gallery.preview import choose
from pipeline.gallery.statistics import Distributions
from pipeline.inputs import shards
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.table.label_map import encode_label_map
from tests.support.labelled import SEGMENT

SHADES = 10  # photo n is a flat grey of this many times n, so that photos can be told apart


def photo(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (SHADES * index,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def labelled(shard: str, index: int, quality: float) -> LabelRecord:
    label_map = np.repeat(np.array([[0, 1]], np.int32), 20, 1).repeat(30, 0)
    segments = (Segment(0, 600, (0, 0, 20, 30), quality), Segment(1, 600, (20, 0, 20, 30), quality))
    png = encode_label_map(label_map)
    return LabelRecord(
        f"k{index}", shard, index, OK, None, 40, 30, png, segments, quality, sha256(photo(index)).hexdigest()
    )


@pytest.fixture
def run(tmp_path):
    """A run of one shard: ten photos of rising quality in windows of four, the last one broken."""
    tar = tmp_path / "photos.tar"
    tar.write_bytes(write_samples((f"k{n}", {"png": photo(n)}) for n in range(10)))
    [shard] = shards.pin([str(tar)])
    made = Run.of(SEGMENT, "0", model="tiny", revision=None, window=4)
    ledger = Ledger.start(str(tmp_path / "run"), made, [shard])
    rows = [labelled(shard.id, n, n / 10) for n in range(9)]
    rows.append(LabelRecord("k9", shard.id, 9, "undecodable", "cut short", 40, 30))
    for window in range(3):
        ledger.writer.commit(ShardTask(shard), window, rows[window * 4 : window * 4 + 4], 0, 0.0)
    return str(tmp_path / "run")


def blocks(path) -> dict[str, dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script id="([\w-]+)" type="application/json">(.*?)</script>', text)
    return {name: json.loads(data) for name, data in found}


def shade(block: dict[str, Any]) -> int:
    return int(np.asarray(Image.open(io.BytesIO(base64.b64decode(block["image"]))))[0, 0, 0])


def test_every_sample_is_shown_with_its_own_photo_and_labels(run, tmp_path):
    shown = write_preview(Ledger.open(run), str(tmp_path / "page.html"), samples=20)

    parts = blocks(tmp_path / "page.html")
    items = parts["index"]["items"]
    assert (shown.items, shown.samples) == (10, 10)
    assert [item["key"] for item in items] == [f"k{n}" for n in range(10)]
    assert [shade(parts[f"item-{n}"]) for n in range(9)] == pytest.approx([SHADES * n for n in range(9)], abs=2)
    assert [len(parts[f"item-{n}"]["maps"]) for n in range(10)] == [1] * 9 + [0]
    assert items[3]["size"] == [40, 30]
    assert items[3]["maps"][0]["quality"] == pytest.approx(0.3)
    assert (items[9]["status"], items[9]["error"]) == ("undecodable", "cut short")


def test_statistics_are_of_the_whole_run_though_few_samples_are_shown(run, tmp_path):
    shown = write_preview(Ledger.open(run), str(tmp_path / "page.html"), samples=3)

    index = blocks(tmp_path / "page.html")["index"]
    assert shown.items == len(index["items"]) == 4  # and the failure
    assert index["statuses"] == [["ok", 9], ["undecodable", 1]]
    assert [sum(one["counts"]) for one in index["histograms"]] == [9, 9, 18]
    qualities = [item["maps"][0]["quality"] for item in index["items"] if item["maps"]]
    assert min(qualities) == pytest.approx(0.0)
    assert max(qualities) == pytest.approx(0.8)


def test_an_unfinished_run_is_shown_and_says_so(run, tmp_path):
    write_preview(Ledger.open(run), str(tmp_path / "page.html"))
    assert ["state", "unfinished"] in blocks(tmp_path / "page.html")["index"]["facts"]

    ledger = Ledger.open(run)
    [shard] = ledger.shards.values()
    ledger.writer.commit_end(shard, windows=3, rows=10, own_windows=())
    write_preview(Ledger.open(run), str(tmp_path / "page.html"))
    assert "state" not in dict(blocks(tmp_path / "page.html")["index"]["facts"])


def test_labels_are_shown_without_photos_that_are_gone(run, tmp_path):
    (tmp_path / "photos.tar").unlink()

    shown = write_preview(Ledger.open(run), str(tmp_path / "page.html"))

    parts = blocks(tmp_path / "page.html")
    assert parts["item-0"]["image"] is None
    assert len(parts["item-0"]["maps"]) == 1
    assert "gone since the run began" in shown.without_photo[0]


def test_a_shard_that_changed_gives_no_photos(run, tmp_path):
    (tmp_path / "photos.tar").write_bytes(write_samples([("other", {"png": photo(25)})]))

    write_preview(Ledger.open(run), str(tmp_path / "page.html"))

    assert blocks(tmp_path / "page.html")["item-0"]["image"] is None


def test_a_run_without_a_window_has_nothing_to_show(tmp_path, run):
    for window in (tmp_path / "run" / "labels").iterdir():
        window.unlink()

    with pytest.raises(ConfigError, match="nothing is committed yet"):
        write_preview(Ledger.open(run), str(tmp_path / "page.html"))
    assert not list(tmp_path.glob("*page*"))


def test_an_output_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="file"):
        write_preview(Ledger.open(run), str(tmp_path / "file" / "page.html"))


def test_the_page_can_go_to_any_storage(run, tmp_path):
    import fsspec

    write_preview(Ledger.open(run), "memory://pages/page.html", seed=3)
    write_preview(Ledger.open(run), str(tmp_path / "page.html"), seed=3)

    assert fsspec.filesystem("memory").cat("/pages/page.html") == (tmp_path / "page.html").read_bytes()


def test_the_command_says_where_the_page_is(run, tmp_path, capsys):
    code = cli.run(["preview", run, "--output", str(tmp_path / "page.html"), "--samples", "6"])

    assert code == 0
    page = tmp_path / "page.html"
    assert capsys.readouterr().out.splitlines() == [f"{page}: 7 of 10 samples", f"gallery: {page.as_uri()}"]


def test_the_page_is_named_after_the_run_and_opened_where_it_is_asked(run, tmp_path, capsys, monkeypatch):
    opened: list[str] = []

    def open_nothing(url: str) -> bool:
        opened.append(url)
        return False

    monkeypatch.setattr(webbrowser, "open", open_nothing)
    monkeypatch.chdir(tmp_path)

    assert cli.run(["preview", run + "/", "--open"]) == 0

    assert opened == [(tmp_path / "run.html").as_uri()]
    assert (tmp_path / "run.html").exists()
    assert capsys.readouterr().err.strip() == f"diffseg: no browser can be started here: open {opened[0]}"


def test_a_filter_leaves_its_rows_and_those_without_labels(run, tmp_path, capsys):
    page = tmp_path / "page.html"

    assert cli.run(["preview", run, "--output", str(page), "--where", "quality > 0.55"]) == 0

    assert [one["key"] for one in blocks(page)["index"]["items"]] == ["k6", "k7", "k8", "k9"]
    assert '["where","quality \\u003e 0.55"]' in page.read_text()
    assert cli.run(["preview", run, "--output", str(page), "--where", "quality >"]) == 2
    assert cli.run(["preview", run, "--output", str(page), "--where", "predicted_iou > 0.5"]) == 2
    assert "name it with --calibration" in capsys.readouterr().err


def test_the_command_refuses_a_folder_without_a_run(tmp_path, capsys):
    assert cli.run(["preview", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    assert "no run here" in capsys.readouterr().err


# ---- the choice


def rows(count: int, failed: int = 0):
    for index in range(count):
        yield {"shard": "s", "index": index, "status": OK, "quality": index / count, "segments": [{"area": 5}]}
    for index in range(count, count + failed):
        yield {"shard": "s", "index": index, "status": "undecodable", "quality": None, "segments": None}


def chosen(count: int, samples: int, seed: int = 0, failed: int = 0):
    return choose(rows(count, failed), Distributions(), samples, seed)


def test_worst_and_best_are_always_among_the_chosen():
    choice = chosen(1000, 30)

    assert len(choice.shown) == 30
    assert {("s", index) for index in (*range(10), *range(990, 1000))} <= choice.shown


def test_images_of_one_segment_are_neither_worst_nor_best():
    single = ({**row, "quality": None if row["index"] % 2 else row["quality"]} for row in rows(1000))
    choice = choose(single, Distributions(), 30, seed=0)

    ranked = {index for _, index in choice.shown - choice.drawn}
    assert not any(index % 2 for index in ranked)
    assert {*range(0, 20, 2), *range(980, 1000, 2)} <= {index for _, index in choice.shown}
    assert any(index % 2 for _, index in choice.drawn)


def test_a_small_run_is_shown_whole():
    choice = chosen(25, 30)

    assert len(choice.shown) == 25
    assert choice.drawn == choice.shown


def test_the_seed_decides_which_are_drawn():
    assert chosen(1000, 30, seed=1) == chosen(1000, 30, seed=1)
    assert chosen(1000, 30, seed=1).drawn != chosen(1000, 30, seed=2).drawn


def test_the_draw_does_not_favor_extremes():
    drawn = [index for seed in range(200) for _, index in chosen(100, 30, seed).drawn]

    assert len(drawn) >= 2000
    assert np.mean(drawn) == pytest.approx(49.5, abs=3)
    extremes = np.mean([index < 10 or index >= 90 for index in drawn])
    assert extremes == pytest.approx(0.2, abs=0.04)


def test_failures_come_on_top_of_the_samples():
    choice = chosen(100, 30, failed=5)

    assert len(choice.shown) == 35
    assert {("s", index) for index in range(100, 105)} <= choice.shown
