"""status --detail: a run in distributions and bytes, from its rows."""

import json
from pathlib import Path

import pytest

from jobs.shared import cli
from pipeline.gallery import statistics as module
from pipeline.gallery.statistics import Holding, detail, holdings
from pipeline.run.compact import compact
from pipeline.run.ledger import Ledger
from tests.support.labelled import make_run

FAILED = {(0, 1): "undecodable", (1, 2): "no_image", (1, 0): "undecodable"}


@pytest.fixture
def ledger(tmp_path):
    return make_run(tmp_path, failed=FAILED)


def test_every_row_is_counted(ledger):
    counts = detail(ledger).counts

    assert counts.by_status() == (("ok", 6), ("undecodable", 2), ("no_image", 1))
    assert counts.mean_segments == 5
    assert counts.mean_quality == pytest.approx((0 + 0.2 + 0.3 + 0.4 + 0.5 + 0.1) / 6)
    assert [sum(one.counts) for one in counts.histograms()] == [6, 6, 30]


def test_storage_is_counted_by_folder(ledger):
    def on_disk(folder: str) -> Holding:
        sizes = [path.stat().st_size for path in (Path(str(ledger)) / folder).rglob("*") if path.is_file()]
        return Holding(len(sizes), sum(sizes))

    compact(ledger)

    found = holdings(ledger)
    assert found.keys() == {".", "compacted", "inputs", "labels"}
    assert {name: found[name] for name in ("compacted", "labels")} == {n: on_disk(n) for n in ("compacted", "labels")}
    assert (found["labels"].objects, found["compacted"].objects) == (3 + 2, 1)


def test_of_a_large_run_a_share_is_read(ledger, monkeypatch):
    monkeypatch.setattr(module, "WINDOWS", 2)

    found = detail(ledger)

    assert found.share == pytest.approx(2 / 3)
    assert found.counts.samples < 9
    assert detail(ledger).counts.by_status() == found.counts.by_status()
    assert any(detail(ledger, seed=seed).counts.by_status() != found.counts.by_status() for seed in range(9))


def test_the_compacted_files_are_read_where_there_are_any(ledger, tmp_path):
    before = detail(ledger)
    compact(ledger)
    for window in ledger.windows():
        (tmp_path / "run" / window.name).write_bytes(b"x" * window.size)  # nobody may look here any more

    assert detail(Ledger.open(str(ledger))).counts.by_status() == before.counts.by_status()


def test_the_command_shows_it(tmp_path, ledger, capsys):
    assert cli.run(["status", str(ledger), "--detail"]) == 0

    said = capsys.readouterr().out
    for part in ("undecodable", "22.22%", "Segments an image", "Areas of segments", "Quality", "labels", "0.05 to 0.1"):
        assert part in said


def test_the_command_gives_it_to_programs(tmp_path, ledger, capsys):
    assert cli.run(["status", str(ledger), "--detail", "--json"]) == 0

    said = json.loads(capsys.readouterr().out)["detail"]
    assert said["by_status"] == {"ok": 6, "undecodable": 2, "no_image": 1}
    assert said["segments_mean"] == 5
    assert said["storage"]["labels"]["objects"] == 5
    assert {len(one["edges"]) - len(one["counts"]) for one in said["histograms"]} == {1}
    assert cli.run(["status", str(ledger), "--json"]) == 0
    assert "detail" not in json.loads(capsys.readouterr().out)


def test_a_run_that_has_not_begun_is_no_error(tmp_path, capsys):
    make_run(tmp_path, [["a"]], leave_out=(0,))

    assert cli.run(["status", str(tmp_path / "run"), "--detail"]) == 0
    assert "0 samples by status" in capsys.readouterr().out
