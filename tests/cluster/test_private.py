"""Where a private Ray has its files, whatever TMPDIR is."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cluster.process import private
from pipeline.errors import ConfigError

SOCKETS = 107  # bytes of a socket's path


@pytest.fixture
def tmpdir(monkeypatch):
    """Sets TMPDIR; what was made is removed."""
    made = []

    def set_and_make(value):
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", value)
        made.append(private.make_folder())
        return Path(made[-1])

    yield set_and_make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def short():
    """A folder whose name is as long as Ray bears, and no longer."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        named = Path(folder) / ("x" * (private.MOST - len(folder) - 1))
        named.mkdir()
        yield named


def test_it_is_where_temporary_files_go_as_long_as_the_sockets_fit(tmpdir, short):
    folder = tmpdir(str(short))
    assert folder.parent == short
    assert folder.stat().st_mode & 0o777 == 0o700
    socket = f"{folder}/{private.RAYS}/session_2026-11-25_18-37-35_203074_4194304/sockets/plasma_store"
    assert len(socket) == SOCKETS


@pytest.mark.parametrize("name", ["x" * 60, "two words", "größe", "a'b", "it=$HOME", "not/there", "file", "x" * 240])
def test_it_is_elsewhere_where_ray_cannot_use_that_place(tmpdir, short, name):
    bad = short.parent / name
    if name == "file":
        bad.write_text("")
    elif name != "not/there":
        bad.mkdir()
    folder = tmpdir(str(bad))
    assert not folder.is_relative_to(bad)
    assert len(str(folder.parent)) <= private.MOST
    assert folder.stat().st_mode & 0o777 == 0o700


def test_where_there_is_no_place_one_line_says_what_to_set(tmpdir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=private.FREE - 1))
    with pytest.raises(ConfigError, match=r"\(TMPDIR=/somewhere\): set TMPDIR to a folder with 50 MB free whose path"):
        tmpdir("/somewhere")


def test_folders_of_killed_drivers_are_swept_and_no_others(tmpdir, short):
    make = "from pipeline.cluster.process import private; import sys; print(private.make_folder(), flush=True)"
    words = [sys.executable, "-c", f"{make}; sys.stdin.read()"]
    env = os.environ | {"TMPDIR": str(short)}
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as killed,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as alive,
    ):
        dead, held = (Path(str(next(iter(each.stdout or []))).strip()) for each in (killed, alive))
        (short / "diffseg-12345678").mkdir()
        killed.kill()
        killed.wait()
        own = tmpdir(str(short))
        assert {path.name for path in short.iterdir()} == {held.name, own.name, "diffseg-12345678"}
        assert not dead.exists()
        alive.kill()
    tmpdir(str(short))
    assert own.exists()
    assert not held.exists()
