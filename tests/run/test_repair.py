"""`verify --repair`: what is broken is copied, proved and deleted, or superseded; `label` makes the run whole."""

import json
import time

import pytest

from jobs.shared import cli
from pipeline.errors import ConfigError, Stopped
from pipeline.run.ledger import Ledger
from pipeline.run.open import keep_run
from pipeline.run.repair import repair
from pipeline.storage.object_store import Store
from tests.faults import stories


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    stories.begin(folder)
    return folder, stories.content(folder)


@pytest.fixture
def folder(finished, tmp_path):
    stories.copy(finished[0], tmp_path)
    return tmp_path


def windows(folder):
    return sorted((folder / "run" / "labels").glob("*.parquet"))


def repaired(folder, **how):
    return list(repair(Store(str(folder / "run")), now=stories.NEVER, **how))


def flip_in_place(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 7] ^= 1
    path.write_bytes(data)


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


CHEATS = {
    "a bit in rows": lambda paths: flip_in_place(paths[1]),
    "two windows exchanged": lambda paths: swap(paths[0], paths[1]),
    "a window of as many bytes": lambda paths: paths[2].write_bytes(bytes(len(paths[2].read_bytes()))),
}


@pytest.mark.parametrize("what", CHEATS)
def test_label_never_says_already_complete_over_what_has_changed_in_as_many_bytes(folder, finished, what):
    CHEATS[what](windows(folder))
    faults = stories.label(folder)
    assert any("verify --repair" in fault for fault in faults), faults
    assert repaired(folder)
    assert stories.label(folder) == ()
    assert stories.content(folder) == finished[1]


def test_what_is_set_aside_lies_in_quarantine_byte_for_byte(folder):
    flip_in_place(windows(folder)[0])
    broken, name = windows(folder)[0].read_bytes(), windows(folder)[0].name
    [(_, mended)] = repaired(folder)
    assert mended
    assert not (folder / "run" / "labels" / name).exists()
    [copy] = (folder / "run" / "quarantine" / "labels").iterdir()
    assert copy.name.startswith(f"{name}.")
    assert copy.read_bytes() == broken


def test_a_dry_run_says_the_same_and_changes_nothing(folder):
    flip_in_place(windows(folder)[0])
    (folder / "run" / "run.json").write_bytes(b"{")
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    told = repaired(folder, dry_run=True)
    assert told
    assert not any(mended for _, mended in told)
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


def test_a_sound_run_is_left_as_it_is(folder):
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    assert repaired(folder, full=True) == []
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


def test_it_refuses_while_a_driver_is_at_work(folder):
    [note] = (folder / "run" / "status").iterdir()
    said = json.loads(note.read_text())
    note.write_text(json.dumps(said | {"left": False, "at": time.time() - 20}))
    flip_in_place(windows(folder)[0])
    with pytest.raises(ConfigError, match="a driver is at work"):
        list(repair(Store(str(folder / "run"))))
    assert not (folder / "run" / "quarantine").exists()


@pytest.mark.parametrize("revision", ["", ".r1"])
def test_where_nothing_may_be_deleted_the_next_label_supersedes_the_window(folder, finished, monkeypatch, revision):
    path = windows(folder)[1]
    if revision:
        path = path.with_suffix(f"{revision}.parquet")
        path.write_bytes(windows(folder)[1].read_bytes())
    flip_in_place(path)

    def refused(store, name):
        raise ConfigError(f"{store}/{name}: Access Denied")

    monkeypatch.setattr(Store, "remove", refused)
    [(line, mended)] = repaired(folder)
    assert "supersedes" in line
    assert mended
    assert path.exists()
    assert stories.label(folder) == ()
    names = [window.name for window in Ledger.open(str(folder / "run")).windows()]
    assert names[1].endswith(f".r{2 if revision else 1}.parquet")
    assert stories.content(folder) == finished[1]
    assert repaired(folder) == []
    assert stories.label(folder) == ()


def test_what_may_not_be_deleted_and_has_no_revision_needs_a_hand(folder, monkeypatch):
    [end, *_] = (folder / "run" / "labels").glob("*.end.json")
    end.write_bytes(b"{")
    monkeypatch.setattr(Store, "remove", lambda store, name: (_ for _ in ()).throw(ConfigError("denied")))
    [(line, mended)] = repaired(folder)
    assert "may not be deleted" in line
    assert not mended
    assert end.exists()


@pytest.mark.parametrize("name", ["run.json", "inputs/0.parquet"])
@pytest.mark.parametrize("what", ["gone", "cut", "edited"])
def test_what_a_run_was_made_from_is_put_back_as_it_was_proved(folder, name, what):
    path = folder / "run" / name
    whole = path.read_bytes()
    if what == "gone":
        path.unlink()
    else:
        edited = whole.replace(b"s-0", b"s-9").replace(b"4,", b"5,")
        path.write_bytes(whole[: len(whole) // 2] if what == "cut" else edited)
    assert path.exists() == (what != "gone")
    repaired(folder)
    if name == "run.json":
        assert path.read_bytes() == whole
    assert list(Ledger.open(str(folder / "run")).shards.values())
    assert repaired(folder) == []
    assert stories.label(folder) == ()


def test_a_list_of_pins_that_nothing_proves_is_made_again_by_label_in_its_old_place(folder, finished):
    run = folder / "run"
    for path in [*run.glob("manifest*"), *run.glob("_SUCCESS*"), run / "inputs/0.parquet"]:
        path.unlink()
    assert stories.label(folder) == ()
    assert (folder / "run/inputs/0.parquet").exists()
    assert stories.content(folder) == finished[1]


def test_run_json_that_vanishes_in_mid_run_is_put_back_and_another_stops_the_run(folder):
    ledger = Ledger.open(str(folder / "run"))
    path = folder / "run" / "run.json"
    whole = path.read_text()
    path.unlink()
    keep_run(ledger.store, ledger.run)
    assert json.loads(path.read_text()) == json.loads(whole)
    for text in ("{", whole.replace('"window": 4', '"window": 8')):
        path.write_text(text)
        with pytest.raises(Stopped, match=r"run\.json"):
            keep_run(ledger.store, ledger.run)


def test_the_command(folder, capsys):
    flip_in_place(windows(folder)[0])
    url = str(folder / "run")
    assert cli.run(["verify", url, "--full"]) == 1
    assert "`diffseg verify --repair` sets it aside" in capsys.readouterr().out
    assert cli.run(["verify", url, "--dry-run"]) == 2
    (folder / "run" / "status").rename(folder / "notes")
    assert cli.run(["verify", url, "--repair", "--dry-run"]) == 1
    assert cli.run(["verify", url, "--repair"]) == 0
    assert windows(folder)[0].name not in capsys.readouterr().err
    assert cli.run(["verify", url]) == 1
    assert "diffseg label` labels what is missing" in capsys.readouterr().out
