"""Processes of workers that end before they are workers are found by what the raylet and they leave behind."""

import os
import subprocess
import sys

import pytest

from pipeline.cluster import starts
from pipeline.cluster.process.private import RAYS
from pipeline.cluster.starts import Starts

LOADER = "python: error while loading shared libraries: libz.so.1: cannot open shared object file"


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / RAYS / "session_latest" / "logs"
    folder.mkdir(parents=True)
    (folder / "raylet.out").write_text("")
    (folder / "raylet.err").write_text("bash: warning: setlocale: cannot change locale\n")
    return folder


@pytest.fixture
def found(tmp_path, logs, monkeypatch):
    """What is known after half a minute."""
    kept = Starts(str(tmp_path), os.getsid(0))
    monkeypatch.setattr(starts, "PATIENCE_S", 0.0)
    return kept


def tell(logs, pid, said=""):
    with (logs / "raylet.out").open("a") as out, (logs / "raylet.err").open("a") as err:
        out.write(f"(raylet) worker_pool.cc:564: Started worker process with pid {pid} worker_id=3a40bd\n")
        err.write(said)


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_last_words_of_those_that_have_ended_are_told_once(found, logs):
    tell(logs, dead(), f"{LOADER}\n")
    tell(logs, dead(), f"{LOADER}\n")
    assert found.failure() == f"its process ends as it begins: {LOADER}"
    assert found.failure() == ""
    tell(logs, dead())
    assert found.failure() == "its process ends as it begins: without a word"


def test_nothing_is_known_while_one_lives_or_before_one_was_started(found, logs):
    assert found.failure() == ""
    tell(logs, dead(), LOADER)
    tell(logs, os.getpid())
    assert found.failure() == ""


def test_a_word_from_a_worker_is_the_end_of_the_matter(found, logs):
    tell(logs, dead(), LOADER)
    found.answered()
    assert found.failure() == ""


def test_a_start_has_half_a_minute(tmp_path, logs):
    kept = Starts(str(tmp_path), os.getsid(0))
    tell(logs, dead(), LOADER)
    assert kept.failure() == ""


def test_of_a_cluster_nothing_is_known(monkeypatch):
    monkeypatch.setattr(starts, "PATIENCE_S", 0.0)
    assert Starts("", os.getpid()).failure() == ""
