"""Inputs that users of such tools complained about, each with the rows it must have; siblings lie in the tests of
finding, patterns, kinds, folders, tars, table and segment.
"""

import os
import shutil

import pytest

from jobs.shared import cli
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.datasets.selection import Selection
from pipeline.exports.export import export
from pipeline.inputs.shards import pin
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg


def copied(cases, name, tmp_path):
    """A case that may be written to, with its links, which not every copy of the cases has kept."""
    shutil.copytree(cases / name, tmp_path / name, symlinks=True)
    for folder, _, files in os.walk(tmp_path / name):
        for path in (tmp_path / name / folder / file for file in files):
            if not path.is_symlink() and path.stat().st_size < 20 and path.read_bytes().startswith(b"../"):
                target = path.read_bytes().decode()
                path.chmod(0o644)
                path.unlink()
                path.symlink_to(target)
    return tmp_path / name


def labelled(tmp_path, *patterns):
    """Keys and statuses of a run over them, and what was said of what is left out."""
    heard: list[str] = []
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(p) for p in patterns], note=heard.append))
    list(Worker(Ledger.open(ledger.store.url), FakeSegmenter(batch_size=3)).run(ledger.unfinished()))
    assert [fault for shard in audit(Ledger.open(ledger.store.url), full=True) for fault in shard.faults] == []
    return [(row["key"], row["status"]) for row in ledger.rows()], heard


THREE = [(f"{number}", OK) for number in range(3)]


@pytest.mark.parametrize(
    ("case", "given", "rows", "said"),
    [
        ("t1_mac_sidecars_in_a_folder_of_a_tar", "in.tar", [(f"photos/{key}", OK) for key, _ in THREE], []),
        ("t4_mac_sidecars_in_a_folder", "in", THREE, ["3 hidden or system files, such as ._0.jpg"]),
        (
            "t10_heic_in_a_folder",
            "in",
            [("a", OK), ("b", "undecodable"), ("c", OK), ("d", OK), ("e", "undecodable")],
            [],
        ),
        ("t11_links_in_a_folder", "in", [("a", OK), ("b", OK)], []),
        ("t13_parquet_by_a_link", "in/train.parquet", None, []),
        ("t13_parquet_by_a_link", "in/*.parquet", None, []),
        ("t14_brackets_in_a_name", "in [raw]/a.tar", None, []),
        ("t14_brackets_in_a_name", "in [raw]", [("b", OK)], ["1 other file: 1 .tar"]),
        ("t14_brackets_in_a_name", "in [raw]/{a,a}.t*", None, []),
        ("t16_mask_labelled_for_the_photo", "in.tar", [("000", "no_image")], []),
        ("p3_binary_dictionary", "in.parquet", [("00000000", OK), ("00000001", OK)], []),
    ],
)
def test_a_case_has_the_rows_it_must_have(cases, tmp_path, case, given, rows, said):
    folder = copied(cases, case, tmp_path)
    found, heard = labelled(tmp_path, folder / given)
    assert found == rows if rows is not None else {status for _, status in found} == {OK}
    assert heard == [f"{folder / given}/: {line}" for line in said]


def test_a_picture_of_several_is_exported_as_the_jpeg_it_is(cases, tmp_path):
    folder = copied(cases, "i11_mpo_name", tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.mpo", "b.jpg_large", "c.JPEG", "d.HEIC"):
        (tmp_path / "photos" / name).write_bytes(jpeg(1))
    labelled(tmp_path, folder / "in.parquet", tmp_path / "photos")
    export(Ledger.open(str(tmp_path / "run")), str(tmp_path / "out"), "png", Selection())
    names = sorted(path.name for path in (tmp_path / "out/JPEGImages").iterdir())
    assert names == ["00000000.jpg", "a.jpg", "b.jpg", "c.jpeg", "d.jpg"]


def commands(tmp_path):
    tiny = ["--model", "tiny", "--workers", "0", "--output", str(tmp_path / "run")]
    return {"label": tiny, "plan": ["--images-per-second", "1"], "plan, json": ["--json"]}


@pytest.mark.parametrize("command", ["label", "plan", "plan, json"])
def test_a_command_says_what_it_leaves_out(tmp_path, capsys, command):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.txt", "c.TXT", "d.mp4", ".DS_Store"):
        (tmp_path / "in" / name).write_bytes(jpeg(1, (64, 64)))
    assert cli.run([command.partition(",")[0], str(tmp_path / "in"), *commands(tmp_path)[command]]) == 0
    heard = capsys.readouterr()
    said = f"{tmp_path}/in/: 3 other files: 2 .txt, 1 .mp4; 1 hidden or system file: .DS_Store"
    assert said in (heard.out if command == "plan" else heard.err)
