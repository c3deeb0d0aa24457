"""Ctrl-C once and twice, and SIGTERM, on a run with workers of its own: the right exit code, and no process left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.shared import cli
from tests.conftest import jpeg, write_shard

MARK = "DIFFSEG_TEST_MARK"  # in the environment of a run's processes, whoever starts them
SECONDS = 5.0  # in which they all must be gone


_sessions: dict[str, set[int]] = {}  # that processes of a run were ever seen in, by its mark


def left_behind(mark):
    """Processes of a run that are still there, by id and command: marked ones, and all in a session with such.

    Ray's agents write their titles over the environment that they were given.
    """
    sessions = _sessions.setdefault(mark, set())
    there = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    for pid in there:
        with suppress(OSError):  # it is gone, or another user's
            if f"{MARK}={mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                sessions.add(os.getsid(pid))
    found = {}
    for pid in there:
        with suppress(OSError):
            if os.getsid(pid) in sessions and (words := Path(f"/proc/{pid}/cmdline").read_bytes()):  # no zombie
                found[pid] = words.replace(b"\0", b" ").decode()
    return found


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="what is left behind is looked up in /proc")
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        pytest.param([signal.SIGINT], 130, marks=pytest.mark.slow, id="Ctrl-C"),
        pytest.param([signal.SIGINT, signal.SIGINT], 130, id="Ctrl-C twice"),
        pytest.param([signal.SIGTERM], 143, marks=pytest.mark.slow, id="SIGTERM"),
    ],
)
def test_a_run_that_is_stopped_leaves_nobody_behind_and_is_finished_by_the_same_command(tmp_path, signals, code):
    count = 80
    content: list[tuple[str, Mapping[str, bytes]]] = [(f"{n:03d}", {"jpg": jpeg(n, (192, 128))}) for n in range(count)]
    words = ["label", str(write_shard(tmp_path / "in" / "s.tar", content)), "--output", str(tmp_path / "run")]
    words += ["--model", "tiny", "--window", "4"]
    mark, temporary = uuid.uuid4().hex, tmp_path / "a folder of temporary files, longer than Ray's sockets bear"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.shared.cli", *words, "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark, "TMPDIR": str(temporary)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it in background
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/labels/*.parquet")):
            assert time.monotonic() < deadline, "nothing was committed"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        workers = left_behind(mark)
        for signum in signals:
            os.kill(process.pid, signum)
            time.sleep(0.3)
        _, said = process.communicate(timeout=60)
        began = time.monotonic()
        while left_behind(mark) and time.monotonic() < began + SECONDS:
            time.sleep(0.2)
        left = left_behind(mark)
    finally:
        process.kill()
        for pid in left_behind(mark):
            os.kill(pid, signal.SIGKILL)

    assert len(workers) > 4, "the driver, its Ray and its workers"
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "the same command resumes" in said
    assert left == {}
    assert 0 < len(list(tmp_path.glob("run/labels/*.parquet"))) < count // 4
    assert cli.run([*words, "--workers", "0"]) == 0
    assert cli.run(["verify", str(tmp_path / "run"), "--full"]) == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="what is left behind is looked up in /proc")
@pytest.mark.parametrize(("output", "code"), [("run", 0), ("/proc/none", 2)])
def test_a_command_that_ends_by_itself_leaves_nobody_behind(tmp_path, output, code):
    mark = uuid.uuid4().hex
    shard = write_shard(tmp_path / "in" / "s.tar", [(f"{n}", {"jpg": jpeg(n)}) for n in range(8)])
    words = ["label", str(shard), "--output", str(tmp_path / output), "--model", "tiny", "--workers", "2"]
    command = [sys.executable, "-m", "jobs.shared.cli", *words]
    done = subprocess.run(command, env={**os.environ, MARK: mark}, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    began = time.monotonic()
    while left_behind(mark) and time.monotonic() < began + SECONDS:
        time.sleep(0.2)
    assert left_behind(mark) == {}
