"""Bounds on what users give, and damage to the small notes of a run: one line, exit 2, or the note is made again."""

import itertools
import json
import os
import shutil

import pytest

from diffseg.models.recognise import json_object
from jobs.shared import cli, console
from pipeline import table
from pipeline.errors import ConfigError
from pipeline.inputs import shards
from pipeline.logs.text import LINE
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import completed, write_manifest
from pipeline.run.verify import audit
from pipeline.storage.filesystem import Entry
from pipeline.storage.object_store import Store
from pipeline.storage.ranged_reader import RangedReader
from tests.support.labelled import make_run

CONFIGURATIONS = {
    "tables without end": "a = " + "[" * 50_000,
    "a number without end": "[run]\nstall = 1" + "0" * 5_000,
    "a number beyond floats": "[run]\nstall = 1" + "0" * 400,
    "a float beyond sense": "[run]\nbatch_size = 1e308",
    "workers beyond sense": "[run]\nworkers = 1000000000",
    "a window beyond sense": "[run]\nwindow = 100000000000000000000",
    "attempts beyond sense": "[run]\nmax_attempts = 1000000000",
    "negative workers": "[run]\nworkers = -1",
    "yes for a number": "[run]\nbatch_size = true",
    "yes for a share": "[run]\nmax_failed = true",
    "an endless stall": "[run]\nstall = inf",
    "no number": "[run]\nstall = nan",
    "yes for a threshold": "[segment]\nthresholds = [true]",
    "anchors beyond sense": "[segment]\nanchors_per_side = 100000",
    "anchors in words": "[segment]\nanchors_per_side = '16'",
    "leaves beyond sense": "[segment]\nleaves = 1000000",
    "yes for leaves": "[segment]\nleaves = true",
    "clusters beyond sense": "[segment]\nmode = 'quality'\nclusters = 100000",
    "a side beyond sense": "[segment]\nimage_size = 1000000",
    "an output beyond sense": "[segment]\noutput_size = 10000000000",
    "an output in words": "[segment]\noutput_size = '1024'",
    "iterations without end": "[segment]\nthresholds = [" + "1.0, " * 10_000 + "]",
    "thresholds in words": "[segment]\nthresholds = ['1.1']",
    "a number for yes": "[segment]\nrefine = 1",
    "a word for yes": "[segment]\nvectors = 'yes'",
    "a share in words": "[segment]\nmin_area = '0.1'",
    "a price in words": "[run]\nprice = '3'",
    "too long": "#" * (2 << 20),
    "no text": "\udcff",
}
PATTERNS = {
    "braces for a thousand million": "/x/{0..999999999}.tar",
    "braces of braces": "/x/{0..9999}{0..9999}.tar",
    "numbers without end": "/x/{0..1" + "0" * 60 + "}.tar",
    "steps": "/x/{0..999999999..2}.tar",
    "deep braces": "/x/" + "{" * 5_000 + ".tar",
    "a notebook's": "jupyter://host/x.tar",
    "data": "data:,x",
    "four slashes": "file:////nowhere/x.tar",
    "a repository": "github://a:b@main/x.tar",
    "references": "reference://x.json",
    "an archive in a bucket": "zip://x.tar::s3://b/c.zip",
    "an archive alone": "zip::s3://b/c.zip",
    "a cache": "simplecache::s3://b/x.tar",
    "a cluster's": "dask://h/x.tar",
    "a program's": "pipe:cat x.tar",
    "a tar in a tar": "tar://a.tar::/tmp/b.tar",
    "no protocol": "://x.tar",
}


def one_line(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.startswith("diffseg: ")
    assert len(text.strip().splitlines()) == 1
    assert len(text) < 2_000
    return text


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_configurations(tmp_path, capsys, what):
    path = tmp_path / "run.toml"
    path.write_bytes(CONFIGURATIONS[what].encode("utf-8", "surrogateescape"))
    words = ["label", "x.tar", "--output", str(tmp_path / "run"), "--model", "tiny", "--config", str(path)]
    assert cli.run(words) == 2
    assert "run.toml" in one_line(capsys)


@pytest.mark.parametrize("what", PATTERNS)
def test_patterns(tmp_path, capsys, what):
    words = ["label", PATTERNS[what], "--output", str(tmp_path / "run"), "--model", "tiny", "--workers", "0"]
    assert cli.run(words) == 2
    one_line(capsys)


@pytest.mark.parametrize(
    ("text", "line"), [("x.tar\n" * 50, "more than 20 names"), ("{0..9}{0..9}{0..9}.tar", "braces")]
)
def test_lists(tmp_path, capsys, monkeypatch, text, line):
    monkeypatch.setattr(shards, "MOST", 20)
    (tmp_path / "list.txt").write_text(text)
    words = ["label", str(tmp_path / "list.txt"), "--output", str(tmp_path / "run"), "--model", "tiny"]
    assert cli.run([*words, "--workers", "0"]) == 2
    assert line in one_line(capsys)


def test_shards_of_many_patterns(monkeypatch):
    monkeypatch.setattr(shards, "MOST", 20)
    monkeypatch.setattr(shards, "expand", lambda *_: (Entry(f"s3://b/{n}.tar", 1, "e") for n in itertools.count()))
    with pytest.raises(ConfigError, match="more than 20 shards"):
        shards.pin(["s3://b/*.tar"])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"hidden_size": 1000000000}', '{"num_hidden_layers": 1e300}', '{"patch_size": NaN}', "[]"]
)
def test_configurations_of_models(text):
    with pytest.raises(ValueError, match=r"config\.json"):
        json_object(text.encode(), "config.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noted")
    ledger = make_run(folder, [[f"{letter}{number}" for number in range(8)] for letter in "ab"])
    write_manifest(ledger, list(audit(ledger)))
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def note(**changed):
    sound = {"at": 1.0, "left": True, "rows": 1, "failed": {}, "windows": 1, "images_per_s": 1.0, "eta_s": None}
    return json.dumps({**sound, "examples": [], **changed})


NOTES = {
    "cut": note()[:20],
    "empty": "",
    "of another kind": "[1, 2]",
    "deep": "[" * 100_000,
    "negative rows": note(rows=-5),
    "a negative rate": note(images_per_s=-1.0),
    "a rate that is none": note(images_per_s=float("nan")),
    "a time without end": note(eta_s=float("inf")),
    "negative failures": note(failed={"poison": -3}),
    "text for numbers": note(rows="many"),
    "huge": note(examples=["x" * (2 << 20)]),
}


@pytest.mark.parametrize("what", NOTES)
def test_notes_of_drivers_are_hints(run, capsys, what):
    (run / "status").mkdir(exist_ok=True)
    (run / "status" / "driver.json").write_text(NOTES[what])
    assert cli.run(["status", str(run)]) == 0
    seen = capsys.readouterr()
    assert "driver.json" in seen.out
    assert "-5" not in seen.out


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{}", "[]", "null", '{"window": 1e400}', "\x1b[2J"])
def test_a_broken_run_json_is_one_line(run, capsys, text):
    (run / "run.json").write_text(text)
    for command in ("status", "verify"):
        assert cli.run([command, str(run)]) == 2
        assert "run.json" in one_line(capsys)


MANIFESTS = {
    "_SUCCESS cut": ("_SUCCESS.0", b'{"shards": 2'),
    "_SUCCESS of other totals": ("_SUCCESS.0", b'{"shards": 2, "windows": 4, "rows": 999, "failed": {}}'),
    "_SUCCESS of negative ones": ("_SUCCESS.0", b'{"shards": 2, "windows": 4, "rows": -16, "failed": {}}'),
    "_SUCCESS deep": ("_SUCCESS.0", b"[" * 100_000),
    "a manifest cut": ("manifest.0.parquet", b"PAR1"),
    "a manifest of nothing": ("manifest.0.parquet", table.encode_rows([{"shard": None, "windows": None}])),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_disagrees_declares_nothing(run, what):
    ledger = Ledger.open(str(run))
    assert completed(ledger, ledger.states())
    name, data = MANIFESTS[what]
    (run / name).write_bytes(data)
    assert completed(ledger, ledger.states()) is None
    assert cli.run(["status", str(run)]) == 0


def test_a_pin_twice_is_a_fault(run, capsys):
    [pins] = (run / "inputs").iterdir()
    shards = list(table.decode_shards(pins.read_bytes()))
    pins.write_bytes(table.encode_shards([*shards, shards[0]]))
    for command in ("status", "verify"):
        assert cli.run([command, str(run)]) == 2
        assert "pinned twice" in one_line(capsys)


def test_a_pin_of_a_size_in_fractions_is_a_fault(run, capsys):
    [pins] = (run / "inputs").iterdir()
    rows, _ = table.decode_rows(pins.read_bytes())
    pins.write_bytes(table.encode_rows([row | {"size": 1.5} for row in rows]))
    for command in ("status", "verify"):
        assert cli.run([command, str(run)]) == 2
        assert "column size" in one_line(capsys)


@pytest.mark.parametrize("name", ["manifest.0.parquet", "inputs/0.parquet", "run.json"])
def test_a_note_of_gigabytes_is_not_read(run, monkeypatch, name):
    os.truncate(run / name, 3 << 30)
    fetch = RangedReader._fetch
    monkeypatch.setattr(RangedReader, "_fetch", lambda self: fetch(self) if self._size < 1 << 30 else pytest.fail(name))
    assert cli.run(["status", str(run)]) == (0 if name.startswith("manifest") else 2)


STRAYS = {
    "bytes that are no text": b"\xff\xfe.parquet",
    "a revision of thirty digits": b"SHARD.000000.r" + b"9" * 30 + b".parquet",
    "a window of forty digits": b"SHARD." + b"9" * 40 + b".parquet",
    "escapes": b"\x1b[31m.parquet",
}


@pytest.mark.parametrize("what", STRAYS)
def test_a_name_of_nothing_in_labels_is_a_stray(run, capsys, what):
    shard = min((run / "labels").iterdir()).name.partition(".")[0]
    with open(os.fsencode(run / "labels") + b"/" + STRAYS[what].replace(b"SHARD", shard.encode()), "wb"):  # noqa: PTH123
        pass
    assert cli.run(["status", str(run)]) == 0
    assert cli.run(["verify", str(run)]) == 1
    assert cli.run(["verify", str(run), "--repair"]) in (0, 1)
    assert "\x1b" not in "".join(capsys.readouterr())
    assert cli.run(["verify", str(run)]) == 0


def test_a_file_in_place_of_a_folder_is_not_taken_for_its_objects(tmp_path):
    (tmp_path / "tmp").write_text("")
    store = Store(str(tmp_path))
    for put in (store.put_new, store.replace):
        with pytest.raises(ConfigError, match="tmp is a file"):
            put("labels/x", b"")
    with pytest.raises(ConfigError, match="tmp is a file"), store.growing("labels/x"):
        pass


@pytest.mark.parametrize("seed", ["-1", "9" * 20])
def test_a_seed_beyond_sense_is_one_line(run, capsys, seed):
    assert cli.run(["categories", str(run), "--clusters", "2", "--seed", seed]) == 2
    assert "--seed" in one_line(capsys)


def test_a_folder_for_a_list_is_one_line(run, capsys):
    assert cli.run(["evaluate", str(run), "--truth", str(run), "--list", str(run)]) == 2
    assert str(run) in one_line(capsys)


def test_a_line_has_an_end(capsys):
    console.note("https://me:secret@host/" + "x" * 10**7)
    text = capsys.readouterr().err
    assert len(text) < 2 * LINE
    assert "secret" not in text


def test_a_pin_of_negative_size_is_a_fault(run, capsys):
    [pins] = (run / "inputs").iterdir()
    rows, _ = table.decode_rows(pins.read_bytes())
    rows[0]["size"] = -1
    pins.write_bytes(table.encode_rows(rows))
    assert cli.run(["status", str(run)]) == 2
    assert "-1 bytes" in one_line(capsys)
