"""Storage that refuses a run under way, and weights that are of no use: the exit code, and the object by name."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save_file

from jobs.shared import cli
from pipeline.driver.progress import Counters, Progress
from pipeline.run import status as of_run
from pipeline.run.ledger import Ledger
from tests.conftest import jpeg, write_shard
from tests.models.test_wrong_models import TINY, weights_of
from tests.support.labelled import make_run


@pytest.fixture
def words(tmp_path):
    for letter in "abcd":
        write_shard(tmp_path / "in" / f"{letter}.tar", [(f"{n}", {"jpg": jpeg(n, (48, 32))}) for n in range(4)])
    words = ["label", str(tmp_path / "in" / "*.tar"), "--output", str(tmp_path / "run"), "--model", "tiny"]
    return [*words, "--workers", "0", "--window", "2"]


def said(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return next(line for line in reversed(text.splitlines()) if line.startswith("diffseg: "))


REFUSALS = {
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "an expired token": PermissionError(errno.EACCES, "ExpiredToken: the token has expired"),
    "gone": FileNotFoundError(errno.ENOENT, "NoSuchBucket"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_an_output_that_refuses_in_mid_run_is_exit_4_with_the_object_by_name(
    words, tmp_path, monkeypatch, capsys, what
):
    refuses, link = threading.Event(), os.link

    def link_until_a_window_is_there(draft, target):
        if refuses.is_set():
            raise REFUSALS[what]
        link(draft, target)
        if "/labels/" in str(target):
            refuses.set()

    monkeypatch.setattr(os, "link", link_until_a_window_is_there)
    assert cli.run(words) == 4
    line = said(capsys)
    assert "labels/" in line
    assert line.endswith("; the same command resumes")
    monkeypatch.undo()
    assert cli.run(words) == 0
    assert len(list(Ledger.open(str(tmp_path / "run")).rows())) == 16


def test_an_input_that_refuses_every_shard_is_exit_4_with_a_shard_by_name(words, monkeypatch, capsys):
    cat_file = LocalFileSystem.cat_file

    def refuse(self, path, *args, **how):
        if path.endswith(".tar"):
            raise PermissionError(errno.EACCES, "ExpiredToken: the token has expired")
        return cat_file(self, path, *args, **how)

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    monkeypatch.setattr("pipeline.labelling.split", lambda tasks, workers, window: tasks)
    assert cli.run(words) == 4
    assert ".tar" in said(capsys)


def test_wrong_weights_are_exit_2(words, tmp_path, capsys):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    path = folder / weights_of("unet")
    state = load_file(path)
    save_file({name: torch.full_like(each, torch.nan) for name, each in state.items()}, path, metadata={"format": "pt"})
    words[words.index("tiny")] = str(folder)
    assert cli.run(words) == 2
    assert "model/unet has no usable attention" in said(capsys)


def test_no_rate_is_negative_when_counts_fall_or_clocks_jump(tmp_path):
    clock = iter([0.0, 10.0, 20.0, 15.0])
    progress = Progress(100, lambda: next(clock))
    counts = Counters()
    for labelled in (50, 10, 5):
        counts.labelled = labelled
        seen = progress.snapshot(counts)
        assert seen.images_per_s >= 0
        assert seen.eta_s is None or seen.eta_s >= 0


@pytest.mark.parametrize("ahead", [-3_600.0, 3_600.0])
def test_a_note_of_another_time_is_no_driver_at_work(tmp_path, ahead):
    ledger = make_run(tmp_path, [["a", "b"]])
    note = b'{"at": %f, "left": false, "rows": 1, "failed": {}, "windows": 1, "images_per_s": 9.0, "eta_s": 3.0, '
    ledger.store.put_new("status/x.json", note % (time.time() + ahead) + b'"examples": []}')
    seen = of_run.status(ledger)
    assert (seen.drivers, seen.images_per_s, seen.eta_s) == (0, 0, None)
