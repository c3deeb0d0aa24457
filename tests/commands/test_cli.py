"""The commands as a person runs them: results, exit codes, and one clear line for every mistake."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg.config import SegmentConfig
from diffseg.models.specs import BACKENDS
from jobs.shared import cli, options
from pipeline import errors
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.conftest import samples, write_shard

PHOTOS = sorted(Path(cli.__file__).parents[1].joinpath("photos").glob("*.jpg"))


@pytest.fixture
def inputs(tmp_path):
    """Two shards of three small photos each."""
    return two_shards(tmp_path / "in", 3)


def two_shards(folder, photos):
    """Two shards of so many small photos each; their pattern."""
    for number in range(2):
        chosen = [PHOTOS[place % len(PHOTOS)] for place in range(photos * number, photos * (number + 1))]
        content = [(f"{place:02d}-{path.stem}", {"jpg": small(path)}) for place, path in enumerate(chosen)]
        write_shard(folder / f"p-{number:05d}.tar", content)
    return str(folder / "p-{00000..00001}.tar")


def small(path):
    """A photo as a JPEG of at most 128 pixels a side."""
    with Image.open(path) as image:
        image.thumbnail((128, 128))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
    return buffer.getvalue()


def label(inputs, output, *more):
    return cli.run(["label", inputs, "--output", str(output), "--model", "tiny", "--workers", "0", *more])


def test_label_status_verify_and_a_second_run_that_does_nothing(inputs, tmp_path, capsys):
    output = tmp_path / "run"
    given = ["--threshold", "0.7,0.9,1.1"]
    assert label(inputs, output, *given) == 0
    said, heard = capsys.readouterr()
    assert "complete: 6 rows, 6 ok" in said
    assert "mode fast, thresholds 0.7, 0.9, 1.1 (one an iteration)\n" in heard

    assert label(inputs, output, *given) == 0
    said, heard = capsys.readouterr()
    assert "already complete, nothing to do: 6 rows, 6 ok" in said
    assert "thresholds 0.7, 0.9, 1.1 (one an iteration)\n" in heard

    assert cli.run(["verify", str(output), "--full"]) == 0
    assert "verified: 6 rows for as many samples in 2 shards" in capsys.readouterr().out

    assert cli.run(["status", str(output)]) == 0
    assert "complete" in capsys.readouterr().out
    assert cli.run(["status", str(output), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["rows"], seen["complete"], seen["bytes_left"]) == (6, True, 0)

    for row in Ledger.open(str(output)).rows():
        labels = decode_label_map(row["label_map"])
        assert labels.shape == (row["height"], row["width"])
        assert set(np.unique(labels)) == set(range(row["num_segments"]))


def test_label_as_json_is_one_document(inputs, tmp_path, capsys):
    assert label(inputs, tmp_path / "run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["ok"], said["failed"], said["complete"], said["exit"]) == (6, 6, {}, True, 0)


def test_a_window_that_goes_missing_is_found_and_made_again(inputs, tmp_path, capsys):
    output = tmp_path / "run"
    label(inputs, output)
    window = next(iter((output / "labels").glob("*.parquet")))
    before = window.read_bytes()
    window.unlink()

    assert cli.run(["verify", str(output)]) == 1
    assert "missing" in capsys.readouterr().out
    assert label(inputs, output) == 0
    assert cli.run(["verify", str(output), "--full"]) == 0
    assert len(before) > 1000


def test_one_broken_image_is_a_row_with_its_reason_and_too_many_are_exit_3(tmp_path, capsys):
    content = [(path.stem, {"jpg": small(path)}) for path in PHOTOS[:3]]
    content[1] = (content[1][0], {"jpg": content[1][1]["jpg"][:300]})
    shard = str(write_shard(tmp_path / "b.tar", content))

    assert label(shard, tmp_path / "strict") == 3
    heard = capsys.readouterr()
    assert "3 rows, 2 ok, 1 undecodable" in heard.out
    assert "more failed rows (33.33%) than --max-failed allows (0.10%)" in heard.out
    assert "failed row:" in heard.err
    assert label(shard, tmp_path / "lax", "--max-failed", "0.5") == 0
    assert cli.run(["verify", str(tmp_path / "lax")]) == 0


def test_a_damaged_shard_is_exit_3_and_the_rest_is_labelled(inputs, tmp_path, capsys):
    damaged = tmp_path / "in" / "p-00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-11000])
    assert label(inputs, tmp_path / "run") == 3
    heard = capsys.readouterr()
    assert "p-00001.tar" in heard.err
    assert "incomplete: 5 rows" in heard.out
    assert cli.run(["verify", str(tmp_path / "run")]) == 1


def mistakes(tmp_path):
    tar = write_shard(tmp_path / "ok.tar", samples(2))
    run = tmp_path / "config.toml"
    run.write_text("[segment]\ntimestp = 3\n")
    out = ["--output", str(tmp_path / "run")]
    tiny = ["--model", "tiny", "--workers", "0"]
    return {
        "no model": (["label", str(tar), *out], "Missing option '--model'"),
        "no output": (["label", str(tar), *tiny], "Missing option '--output'"),
        "no such shard": (["label", str(tmp_path / "none.tar"), *out, *tiny], "none.tar: no such shard"),
        "empty pattern": (["label", str(tmp_path / "x-*.tar"), *out, *tiny], "x-*.tar: matches no file"),
        "braces": (["label", str(tmp_path / "x-{0..3.tar"), *out, *tiny], "x-{0..3.tar"),
        "a folder": (["label", str(tmp_path), *out, *tiny], str(tmp_path)),
        "no shard": (["label", str(run), *out, *tiny], "config.toml: not a shard"),
        "pipe": (["label", "pipe:cat x.tar", *out, *tiny], "no storage protocol 'pipe'"),
        "protocol": (["label", "quux://a/b.tar", *out, *tiny], "no storage protocol 'quux'"),
        "unwritable": (["label", str(tar), "--output", "/proc/run", *tiny], "/proc/run"),
        "a file as output": (["label", str(tar), "--output", str(tar), *tiny], "ok.tar"),
        "unknown model": (["label", str(tar), *out, "--model", "sd9"], "'sd9'"),
        "misspelt": (["label", str(tar), *out, *tiny, "--config", str(run)], "[segment] has no 'timestp'"),
        "threshold": (["label", str(tar), *out, *tiny, "--threshold", "much"], "'much'"),
        "negative": (["label", str(tar), *out, *tiny, "--threshold", "-1"], "(-1.0, -1.0, -1.0)"),
        "two thresholds": (
            ["label", str(tar), *out, *tiny, *2 * ["--threshold", "1"]],
            "given 2 times: here it is given",
        ),
        "two to see": (["segment", str(tar), "--model", "tiny", *3 * ["--threshold", "1"]], "given 3 times"),
        "workers": (["label", str(tar), *out, "--model", "tiny", "--workers", "-1"], "got -1"),
        "no run": (["status", str(tmp_path / "nothing")], "no run here"),
        "no run to verify": (["verify", str(tmp_path / "nothing")], "no run here"),
        "no image": (["segment", str(tmp_path / "no.jpg"), "--model", "tiny"], "no.jpg: no such image"),
        "unknown command": (["lable"], "No such command 'lable'"),
    }


@pytest.mark.parametrize("name", mistakes(Path("/tmp/diffseg-names")).keys())
def test_a_mistake_is_one_clear_line_and_exit_2(name, tmp_path, capsys):
    arguments, expected = mistakes(tmp_path)[name]
    assert cli.run(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert said.startswith("diffseg: ")
    assert "\n" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.StorageError("s3 is away"), "stopped: s3 is away; the same command resumes"),
        (errors.Stopped("9 workers died in a row"), "stopped: 9 workers died in a row; the same command resumes"),
        (errors.StorageFull("no space left"), "stopped: no space left; the same command resumes"),
        (errors.WorkerLost("killed\n  by somebody\n"), "stopped: killed by somebody; the same command resumes"),
        (errors.RayLost("its GCS is gone"), "stopped: its GCS is gone; the same command resumes"),
        (errors.NoWorker("no worker can start: no driver"), "stopped: no worker can start: no driver"),
        (errors.WouldRepeat("lower the thresholds"), "stopped: lower the thresholds"),
        (errors.ShardChanged("a.tar: gone"), "stopped: a.tar: gone"),
        (errors.CommitConflict("another's"), "stopped: another's"),
        (KeyboardInterrupt(), "interrupted; the same command resumes"),
        (errors.ConfigError("two\nlines"), "two lines"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_that_the_same_command_resumes_is_said_where_it_does(error, said, inputs, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pipeline.labelling.label", fail)
    monkeypatch.setattr("pipeline.run.ledger.Ledger.open", fail)
    assert label(inputs, tmp_path / "run") in (2, 4, 130)
    assert capsys.readouterr().err.strip() == f"diffseg: {said}"
    assert cli.run(["status", "run"]) in (2, 4, 130)
    assert capsys.readouterr().err.strip() == f"diffseg: {said.removesuffix('; the same command resumes')}"


def test_no_place_for_temporary_files_is_one_line(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    monkeypatch.setattr("pipeline.labelling.label", lambda *_, **__: tempfile.mkdtemp())
    assert label(inputs, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("diffseg: No usable temporary directory found")
    assert said.endswith("set TMPDIR to a folder that can be written to\n")


def test_another_configuration_on_an_existing_run_is_refused_with_the_difference(inputs, tmp_path, capsys):
    output = tmp_path / "run"
    label(inputs, output)
    capsys.readouterr()
    assert label(inputs, output, "--timestep", "77", "--window", "9") == 2
    said = capsys.readouterr().err
    assert "it was begun with --timestep 50 --window 1024: repeat that, or" in said
    assert "timestep: 50 there, 77 here" in said
    assert "window: 1024 there, 9 here" in said


def test_a_run_takes_more_shards_only_when_told_to(inputs, tmp_path, capsys):
    output = tmp_path / "run"
    label(inputs.replace("{00000..00001}", "00000"), output)
    assert label(inputs, output) == 2
    assert "add --extend" in capsys.readouterr().err
    assert label(inputs, output, "--extend") == 0
    assert "6 rows" in capsys.readouterr().out
    assert cli.run(["verify", str(output)]) == 0


def test_segment_writes_a_label_map_and_an_overlay(tmp_path, capsys):
    assert cli.run(["segment", str(PHOTOS[0]), "--model", "tiny", "--output", str(tmp_path)]) == 0
    with Image.open(PHOTOS[0]) as photo, Image.open(tmp_path / f"{PHOTOS[0].stem}.overlay.png") as overlay:
        assert overlay.size == photo.size
    labels = decode_label_map((tmp_path / f"{PHOTOS[0].stem}.labels.png").read_bytes())
    assert labels.max() >= 1
    said, heard = capsys.readouterr()
    assert "segments" in said
    assert "trees of 64 leaves, cut at " in heard


def test_help_names_every_command_and_takes_less_than_it_seems():
    done = subprocess.run(
        [sys.executable, "-m", "jobs.shared.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "label", "status", "verify", "segment", "preview", "evaluate"):
        assert command in done.stdout


def start(inputs, output):
    command = [sys.executable, "-m", "jobs.shared.cli", "label", inputs, "--output", str(output), "--model", "tiny"]
    return subprocess.Popen(
        [*command, "--workers", "0", "--window", "1", "--batch-size", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it in background
    )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_stopped_half_way_is_finished_by_the_same_command(tmp_path, signum, code, capsys):
    inputs, output = two_shards(tmp_path / "in", 8), tmp_path / "run"
    process = start(inputs, output)
    deadline = time.monotonic() + 90
    while not list(output.glob("labels/*.parquet")):
        assert time.monotonic() < deadline, "nothing was committed"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, signum)
    _, said = process.communicate(timeout=60)

    assert process.returncode == code
    assert "Traceback" not in said
    if signum != signal.SIGKILL:
        assert "the same command resumes" in said
    assert 0 < len(list(output.glob("labels/*.parquet"))) < 16
    assert label(inputs, output, "--window", "1") == 0
    assert cli.run(["verify", str(output), "--full"]) == 0
    assert "16 rows for as many samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({}, "trees of 64 leaves, cut at 0.4 nats"),
        ({"leaves": 16, "cut": 1.5}, "trees of 16 leaves, cut at 1.5 nats"),
        ({"tree": False}, "thresholds 0.3, 0.3, 0.3 (one an iteration)"),
        ({"mode": "quality"}, "segments: as many as each image asks for"),
        ({"mode": "quality", "clusters": 7}, "segments: 7"),
    ],
)
def test_commands_say_how_images_are_parted(asked, line):
    model = replace(BACKENDS["tiny"], cut=0.4)
    assert options.describe(SegmentConfig(**asked).resolve(model)) == line


def test_a_pilot_of_quality_mode_has_nothing_to_compare(tmp_path, capsys):
    assert (
        cli.run(["pilot", "photos.tar", "--model", "tiny", "--mode", "quality", "--output", str(tmp_path / "p.html")])
        == 2
    )
    assert "mode quality has neither" in capsys.readouterr().err
