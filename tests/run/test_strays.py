"""Objects in a run's folder that are none of its own, or cannot be read: named, with the right exit code, once."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from jobs.label import report
from jobs.shared import cli
from pipeline import labelling
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.config import RunConfig
from pipeline.errors import Stopped
from pipeline.inputs.shards import pin
from pipeline.run.layout import end_name, window_name
from pipeline.run.ledger import Ledger
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard


def label(root, shards=()):
    """Windows of four samples; the exit code."""
    ledger = Ledger.start(str(root / "run"), a_run(), shards)

    def build(settings):
        return Worker(Ledger.open(settings.output), FakeSegmenter(batch_size=3))

    return report(labelling.finish(ledger, "fake", RunConfig(workers=0), build=build), RunConfig(), json=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of ten samples in one shard and seven in another."""
    root = tmp_path_factory.mktemp("made")
    write_shard(root / "in" / "a.tar", samples(10))
    write_shard(root / "in" / "b.tar", samples(7, first=100))
    assert label(root, pin([str(root / "in" / "*.tar")])) == 0
    return root


@pytest.fixture
def begun(made, tmp_path):
    """The same run without any labels."""
    shutil.copytree(made / "run", tmp_path / "run", ignore=shutil.ignore_patterns("labels", "manifest*", "_SUCCESS*"))
    return tmp_path


@pytest.fixture
def finished(made, tmp_path):
    """The same run once more."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture(params=["finished", "begun"])
def root(request):
    """Both."""
    return request.getfixturevalue(request.param)


def shard(root):
    return next(iter(Ledger.open(str(root / "run")).shards))


def put(root, name, data):
    path = root / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def whole(made, window=1):
    return (made / "run" / window_name(shard(made), window)).read_bytes()


def end(made, **changes):
    return json.dumps({**json.loads((made / "run" / end_name(shard(made))).read_bytes()), **changes}).encode()


def with_footer(made, footer, path):
    pq.write_table(pq.read_table(made / "run" / window_name(shard(made), 1)).replace_schema_metadata(footer), path)
    return path.read_bytes()


WINDOWS = {
    "empty": (1, lambda made, path: b""),
    "cut": (1, lambda made, path: whole(made)[:-100]),
    "of another window": (2, lambda made, path: whole(made)),
    "beyond the end": (99, lambda made, path: whole(made)),
    "just beyond the end": (3, lambda made, path: b""),
    "far beyond the end": (10**13, lambda made, path: b""),
    "without a footer": (1, lambda made, path: with_footer(made, {}, path)),
    "with a footer that is a list": (1, lambda made, path: with_footer(made, {b"diffseg": b"[]"}, path)),
    "with a footer that is no JSON": (1, lambda made, path: with_footer(made, {b"diffseg": b"x"}, path)),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_a_window_that_is_none_is_named(root, made, tmp_path, kind, capsys):
    number, data = WINDOWS[kind]
    put(root, window_name(shard(made), number), data(made, tmp_path / "made.parquet"))
    assert label(root) == 3
    assert shard(made) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["cut", "of another window", "with a footer that is a list"])
def test_readers_say_in_one_line_which_window_is_none(finished, made, tmp_path, kind, capsys):
    number, data = WINDOWS[kind]
    put(finished, window_name(shard(made), number), data(made, tmp_path / "made.parquet"))
    for said in reading(finished, capsys, 2):
        assert [line for line in said.splitlines() if f"{shard(made)}.00000{number}.parquet: " in line] == [
            said.strip()
        ]


NAMES = ["x-0123456789ab.000000.parquet", "x.end.json", ".tmp", "a.parquet.tmp", "README", "sub/a.000000.parquet"]
OF_A_SHARD = ["1.parquet", "000001.r0.parquet", "000001.rx.parquet", "000001.parquet.tmp", "000001.json"]


def test_objects_of_other_names_are_named(finished, made, capsys):
    root = finished
    names = [f"labels/{name}" for name in (*NAMES, *(f"{shard(made)}.{rest}" for rest in OF_A_SHARD))]
    for name in names:
        put(root, name, b"x")
    assert label(root) == 3
    assert cli.run(["verify", str(root / "run")]) == 1
    said = capsys.readouterr().out
    for name in names:
        assert name in said or f"{name.rpartition('.0')[0]}.*" in said or f"{name.removesuffix('.end.json')}.*" in said
    reading(root, capsys, 0)


def test_a_mac_may_look_into_a_run(finished):
    root = finished
    for name in (".DS_Store", "._x.000000.parquet"):
        put(root, f"labels/{name}", b"x")
    assert label(root) == 0


ENDS = {
    "no JSON": lambda made: b"garbage",
    "empty": lambda made: b"",
    "a list": lambda made: b"[]",
    "of words": lambda made: end(made, windows="many"),
    "of another shard": lambda made: end(made, shard="other"),
    "of more windows": lambda made: end(made, windows=70),
    "of more windows than can be listed": lambda made: end(made, windows=10**12),
    "of less than none": lambda made: end(made, windows=-1),
    "of half a window": lambda made: end(made, windows=2.5),
}


@pytest.mark.parametrize("kind", ENDS)
def test_an_end_record_that_is_none_is_named(root, made, kind, capsys):
    put(root, end_name(shard(made)), ENDS[kind](made))
    assert label(root) == 3
    assert shard(made) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["no JSON", "of words", "of more windows than can be listed"])
def test_readers_do_without_an_end_record(finished, made, kind, capsys):
    put(finished, end_name(shard(made)), ENDS[kind](made))
    reading(finished, capsys, 0)


def test_an_end_record_that_is_none_costs_no_other_shard(finished, made):
    root = finished
    put(root, end_name(shard(made)), b"garbage")
    for path in (root / "run" / "labels").glob("*.000001.parquet"):
        path.unlink()
    assert label(root) == 3
    other = list(Ledger.open(str(root / "run")).shards)[1]
    assert len(Ledger.open(str(root / "run")).states()[other].windows) == 2


@pytest.mark.parametrize("name", ["window", "end record"])
def test_a_folder_in_the_place_of_an_object_is_named(root, made, name):
    path = root / "run" / (window_name(shard(made), 1) if name == "window" else end_name(shard(made)))
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    with pytest.raises(Stopped, match=f"{path.name}: a folder stands where this object belongs"):
        label(root)


@pytest.mark.parametrize("generation", [1, 99999999999])
def test_a_retry_that_cannot_be_read_is_named_and_not_retried_for_ever(finished, made, generation, capsys):
    root = finished
    put(root, window_name(shard(made), 1, generation), b"")
    assert label(root) == 3
    assert f"r{generation}.parquet: no Parquet file" in capsys.readouterr().err
    ledger = Ledger.open(str(root / "run"))
    assert ledger.failed() == []


@pytest.mark.parametrize("data", [b"garbage", b"[]", b"{}"])
def test_notes_and_records_that_are_none_are_passed_over(finished, made, data, capsys):
    root = finished
    assert label(root) == 0
    for name in ("status/x.json", f"failures/{shard(made)}.zz.json", f"failures/{shard(made)}.0.poison.jpg"):
        put(root, name, data)
    for name in ("manifest.0.parquet", "_SUCCESS.0"):
        put(root, name, data)
    assert cli.run(["status", str(root / "run")]) == 0
    assert "status/x.json" in capsys.readouterr().out
    assert cli.run(["verify", str(root / "run")]) == 0
    assert label(root) == 0
    (root / "run" / end_name(shard(made))).unlink()
    assert cli.run(["verify", str(root / "run")]) == 1
    assert "not read to its end" in capsys.readouterr().out


def reading(root, capsys, code):
    """What else reads a run with a fault, and what each has said of it on stderr."""
    url = str(root / "run")
    assert cli.run(["status", url]) == 0
    assert cli.run(["verify", "--full", url]) == 1
    capsys.readouterr()
    said = []
    for command in (
        ["status", "--detail", url],
        ["preview", url, "--output", str(root / "page.html")],
        ["export", url, "--format", "huggingface", "--output", str(root / "export")],
        ["compact", url],
    ):
        assert cli.run(command) == code
        said.append(capsys.readouterr().err)
    return said
