"""Damage to windows: every reader names the broken object in one line before it makes anything of it.

Trial, expected: each row of DAMAGES is a window that was changed, and what is said of it.
"""

import io
import json
import os
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.shared import cli
from pipeline import documents, table
from pipeline.datasets import RunDataset, RunStream
from pipeline.errors import ShardChanged
from pipeline.run.ledger import Ledger
from pipeline.table.window_metadata import digest_of
from tests.support.labelled import CUT, make_run, photo

READERS = {
    "export": ["export", "RUN", "--format", "coco-panoptic", "--no-images", "--output", "OUT"],
    "preview": ["preview", "RUN", "--output", "OUT.html"],
    "status": ["status", "RUN", "--detail"],
    "compact": ["compact", "RUN"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder, [[f"{letter}{number}" for number in range(8)] for letter in "ab"])
    return folder / "run"


def rewritten(change=lambda rows: None, honest=False, **metadata):
    """A change of a window's rows or metadata, in a file that is sound as Parquet."""

    def damage(path, others):
        with path.open("rb") as stream:
            known = table.read_window_metadata(stream)
        file = pq.read_table(path)
        rows = file.to_pylist()
        change(rows)
        known = replace(known, **{"rows": len(rows), **metadata})
        if honest:
            known = replace(known, digest=digest_of([table.as_record(dict(row)) for row in rows]))
        made = pa.Table.from_pylist(rows, schema=file.schema).replace_schema_metadata(
            {b"diffseg": documents.to_json(known)}
        )
        pq.write_table(made, path)

    return damage


def every(name, value):
    return rewritten(lambda rows: [row.update({name: value}) for row in rows])


def of_segments(**values):
    return rewritten(lambda rows: [row["segments"][0].update(values) for row in rows])


def png(width, height, mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    data = bytearray(png(4, 4))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


def flipped(path, others):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :: 7] = bytes(255 - byte for byte in data[len(data) // 2 :: 7])
    path.write_bytes(data)


def in_columns(change):
    """A change of a window's columns; its metadata stay."""

    def damage(path, others):
        file = pq.read_table(path)
        pq.write_table(change(file).replace_schema_metadata(file.schema.metadata), path)

    return damage


def cast(name, type_):
    return in_columns(lambda t: t.set_column(t.column_names.index(name), name, t[name].cast(type_)))


DAMAGES = {
    "without a column": in_columns(lambda t: t.drop_columns(["quality"])),
    "of a column twice": in_columns(lambda t: t.append_column("key", t["key"])),
    "of numbers in letters": cast("index", pa.string()),
    "of keys in bytes": cast("key", pa.binary()),
    "of labels without a label map": every("label_map", None),
    "of a label map with transparency": every("label_map", png(12, 9, "LA")),
    "of another window": lambda path, others: shutil.copy(others[0], path),
    "truncated": lambda path, others: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path, others: path.write_bytes(b""),
    "no Parquet": lambda path, others: path.write_bytes(b"<html>not found</html>" * 9),
    "without our footer": lambda path, others: pq.write_table(pa.table({"key": ["a"]}), path),
    "flipped": flipped,
    "of another run": rewritten(fingerprint="0" * 16),
    "of another shard": rewritten(shard="other-0123456789ab"),
    "of another version of its shard": rewritten(size=1),
    "of another number": rewritten(window=7),
    "of other indices": rewritten(first_index=40),
    "with a row less than it says": rewritten(lambda rows: rows.pop(), rows=4),
    "with an index twice": rewritten(lambda rows: rows[1].update(index=rows[0]["index"])),
    "with an index of another window": rewritten(lambda rows: rows[-1].update(index=10**6)),
    "with a row of another shard": rewritten(lambda rows: rows[0].update(shard="other")),
    "as wide as a number can be": every("width", 2**31 - 1),
    "of no height": every("height", 0),
    "of negative height": every("height", -5),
    "of quality NaN": every("quality", float("nan")),
    "of quality 7": every("quality", 7.0),
    "of score NaN": of_segments(score=float("nan")),
    "of a segment 10^9": of_segments(id=10**9),
    "of a segment -1": of_segments(id=-1),
    "of one segment twice": rewritten(lambda rows: [row["segments"][1].update(id=0) for row in rows]),
    "of a box outside": of_segments(box=[20, 0, 10**6, 3]),
    "of a negative box": of_segments(box=[-2, 0, 3, 3]),
    "of an area of 2^60": of_segments(area=2**60),
    "of another count of segments": every("num_segments", 3),
    "of a label map larger than its image": every("label_map", png(100, 100)),
    "of a bomb": every("label_map", bomb()),
    "of a label map that is no PNG": every("label_map", b"nothing of this kind"),
    "of a label map in colours": every("label_map", png(12, 9, "RGB")),
    "of a label map that is a GIF": every("label_map", b"GIF89a" + bytes(40)),
    "of a label map that is cut": rewritten(lambda r: [row.update(label_map=row["label_map"][:50]) for row in r]),
}


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def said(capsys, command, run, tmp_path):
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in READERS[command]]
    code = cli.run(words)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("what", DAMAGES)
def test_export_names_a_damaged_window(run, tmp_path, capsys, what):
    windows = sorted((run / "labels").glob("*.parquet"))
    DAMAGES[what](windows[1], [windows[0]])
    code, text = said(capsys, "export", run, tmp_path)
    assert code == 2, text
    assert len(text.strip().splitlines()) == 1
    assert "verify" in text or windows[1].name in text
    assert "0x" not in text


@pytest.mark.parametrize("command", [command for command in READERS if command != "export"])
@pytest.mark.parametrize("what", ["of another window", "of another run", "of a segment 10^9", "flipped", "truncated"])
def test_other_readers_name_it_too(run, tmp_path, capsys, what, command):
    windows = sorted((run / "labels").glob("*.parquet"))
    DAMAGES[what](windows[1], [windows[0]])
    code, text = said(capsys, command, run, tmp_path)
    assert code == 2, text
    assert windows[1].name in text


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_names_it(run, capsys, what):
    windows = sorted((run / "labels").glob("*.parquet"))
    DAMAGES[what](windows[1], [windows[0]])
    assert cli.run(["verify", str(run), "--full"]) == 1
    seen = capsys.readouterr()
    assert windows[1].name.split(".")[0] in seen.out + seen.err


@pytest.mark.parametrize("value", [None, b"nothing of this kind"])
def test_a_forged_tree_is_one_line_and_verify_finds_it(tmp_path, capsys, value):
    """Forged: the digest of the rows is right."""
    make_run(tmp_path, [list("abcdefgh")], trees=CUT)
    path = min((tmp_path / "run" / "labels").glob("*.parquet"))
    rewritten(lambda rows: [row.update(leaf_map=value) for row in rows], honest=True)(path, [])
    assert cli.run(["preview", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert cli.run(["verify", str(tmp_path / "run"), "--full"]) == 1
    assert path.name in capsys.readouterr().out


def test_forged_vectors_are_one_line(tmp_path, capsys):
    make_run(tmp_path, [list("abcdefgh")], trees=CUT)
    path = min((tmp_path / "run" / "labels").glob("*.parquet"))
    nan = b"\1" * 64 + b"\xff\x7f"
    rewritten(lambda rows: [row.update(vectors=nan * (len(row["vectors"]) // 66)) for row in rows], honest=True)(
        path, []
    )
    assert cli.run(["categories", str(tmp_path / "run"), "--clusters", "2"]) == 2
    assert path.name in capsys.readouterr().err


def test_an_undamaged_run_is_read_by_all(run, tmp_path, capsys):
    for command in READERS:
        code, text = said(capsys, command, run, tmp_path)
        assert code == 0, (command, text)
    assert json.loads((run / "run.json").read_text())["window"] == Ledger.open(str(run)).run.window


@pytest.mark.parametrize("name", ["_SUCCESS", "_export/000000.json", "export.json"])
@pytest.mark.parametrize("text", ["{", "[" * 50_000, "[]", '{"parts": "many"}'])
def test_a_damaged_record_of_an_export_is_one_line(run, tmp_path, capsys, name, text):
    assert said(capsys, "export", run, tmp_path)[0] == 0
    (tmp_path / "out" / name).write_text(text)
    if name.startswith("_export"):
        (tmp_path / "out" / "_SUCCESS").unlink()
    code, line = said(capsys, "export", run, tmp_path)
    assert code == 2, line
    assert name in line or name == "export.json"
    assert len(line.strip().splitlines()) == 1


def swapped(folder):
    """The photos of a shard exchanged under the same names, in as many bytes, at the same time."""
    path = folder / "in" / "s-1.tar"
    before, data = path.stat(), path.read_bytes()
    one, other = photo(100), photo(104)
    assert len(one) == len(other)
    path.write_bytes(data.replace(one, b"~" * len(one)).replace(other, one).replace(b"~" * len(one), other))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_photos_that_are_not_those_labelled_are_left_out_counted_and_named(tmp_path, capsys):
    make_run(tmp_path, [[f"{letter}{number}" for number in range(8)] for letter in "ab"])
    swapped(tmp_path)
    run = str(tmp_path / "run")
    words = ["export", run, "--format", "coco-panoptic", "--output", str(tmp_path / "out")]
    assert cli.run(words) == 3
    seen = capsys.readouterr()
    assert "14 images" in seen.out
    assert "2 rows, not the photo that was labelled" in seen.err
    assert "s-1.tar" in seen.err
    assert cli.run(words) == 3, "said again by a finished export"
    assert cli.run(["preview", run, "--output", str(tmp_path / "page.html")]) == 3
    assert "not the photo that was labelled" in capsys.readouterr().err
    assert cli.run(["verify", run]) == 0
    assert cli.run(["verify", run, "--full"]) == 1
    assert "not the image that was labelled" in "".join(capsys.readouterr())
    assert len(list(RunStream(run))) == 14
    with pytest.raises(ShardChanged, match="not the photo"):
        RunDataset(run)[8]
