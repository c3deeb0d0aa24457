"""How commands end: with their own exit code and all that was said, whoever listens and whatever still runs."""

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs.shared import cli, console
from pipeline import table
from pipeline.driver.progress import Snapshot
from pipeline.run.ledger import Ledger
from tests.conftest import jpeg, write_shard
from tests.support.labelled import make_run
from tests.table.test_records import METADATA, ROWS

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="there is no disk here that is always full")
FOREIGN = "e\u0301té-漢字"  # a name that ASCII and most code pages lack
BYTES = os.fsdecode(b"\xff\xfe")  # one that is no UTF-8


def ended(script, **options):
    """What becomes of a process that does `command`, which the script defines."""
    words = [sys.executable, "-c", f"import sys\nfrom pipeline import process\n{script}\nprocess.run(command)"]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60} | options
    return subprocess.run(words, cwd=ROOT, check=False, **kept)


def says(length, code=0):
    return f"def command():\n    sys.stdout.write({length} * 'x')\n    return {code}"


class Closed:
    """A pipe whose reader has left."""

    def __enter__(self):
        reader, self.writer = os.pipe()
        os.close(reader)
        return self.writer

    def __exit__(self, *_):
        os.close(self.writer)


# -- the exit code -------------------------------------------------------------------------------------------------

STILL_RUNNING = """
import atexit, hashlib, tempfile, threading, time
folder = tempfile.TemporaryDirectory()
atexit.register(lambda: sys.stdout.write("tidied up\\n"))
threading.Thread(target=time.sleep, args=[300]).start()
def hash():
    while True:
        hashlib.sha256(bytes(1 << 20)).digest()
threading.Thread(target=hash, daemon=True).start()
def command():
    print(folder.name)
"""


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130, 143])
def test_the_code_of_a_command_is_its_exit_code_whatever_threads_still_run(code):
    began = time.monotonic()
    done = ended(f"{STILL_RUNNING}    return {code}")
    assert done.returncode == code
    folder, tidied = done.stdout.splitlines()
    assert tidied == "tidied up"
    assert not Path(folder).exists()
    assert done.stderr == ""
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return None", 0),
        ("sys.exit()", 0),
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", 130),  # a second Ctrl-C, while the first is told
        # a suite in the background is born deaf to SIGINT, and so are its children
        ("signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), 2); time.sleep(60)", 130),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 143),
        ("process.TIDYING_S = 0.2; atexit.register(time.sleep, 60); return 3", 3),
        ("atexit.register(lambda: 1 / 0); return 2", 2),
        ("atexit.register(lambda: sys.stdout.close()); return 2", 2),
    ],
)
def test_every_way_out_has_its_code(body, code):
    done = ended(f"import atexit, os, signal, time\ndef command():\n    print('said')\n    {body}", timeout=30)
    assert (done.returncode, done.stdout) == (code, "said\n")


def test_a_word_in_place_of_a_code_is_told():
    done = ended("def command():\n    sys.exit('no such thing')")
    assert (done.returncode, done.stderr) == (1, "no such thing\n")


def test_ctrl_c_while_the_command_line_is_loading_is_no_traceback():
    script = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "jobs.shared.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.path.append("jobs/entry")
from diffseg_command import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_fault_of_ours_is_told_with_its_place_and_is_exit_1():
    done = ended("def command():\n    print('so far')\n    return {}['what']")
    assert (done.returncode, done.stdout) == (1, "so far\n")
    assert "Traceback" in done.stderr
    assert "KeyError: 'what'" in done.stderr


def test_a_connection_that_breaks_is_no_reader_that_left(monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(Ledger, "open", broken)
    with pytest.raises(BrokenPipeError):
        cli.run(["status", "anywhere"])


# -- who listens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_reader_that_has_left_changes_nothing(code):
    with Closed() as gone:
        done = ended(says(300_000, code), stdout=gone)
    assert (done.returncode, done.stderr) == (code, "")


@full
@pytest.mark.parametrize(("code", "exit_"), [(0, 4), (1, 1), (3, 3)])
@pytest.mark.parametrize("length", [3, 300_000])
def test_what_a_full_disk_does_not_take_is_no_success(code, exit_, length):
    with FULL.open("w") as disk:
        done = ended(says(length, code), stdout=disk)
    assert done.returncode == exit_
    assert done.stderr == "diffseg: stdout: No space left on device: what was to be said there is lost\n"


@full
def test_notes_that_nobody_can_hear_end_no_run():
    script = (
        "def command():\n    for _ in range(9):\n        print('note', file=sys.stderr, flush=True)\n    print('made')"
    )
    with Closed() as gone, FULL.open("w") as disk:
        for stderr in (gone, disk):
            done = ended(script, stderr=stderr)
            assert (done.returncode, done.stdout) == (0, "made\n")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed_before_are_not_missed(closed, tmp_path):
    script = (
        "from pipeline import process\ndef command():\n    print('x')\n    open('made', 'w').write('y')\n    return 3\n"
    )
    words = f"exec {sys.executable} -c '{script.replace(chr(39), chr(34))}process.run(command)' {closed}"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 3
    assert (tmp_path / "made").read_text() == "y"


def test_a_stream_that_somebody_made_non_blocking_gets_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words = "import time\n" + says(1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom pipeline import process\n{words}\nprocess.run(command)"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    time.sleep(0.5)
    with os.fdopen(reader, "rb") as pipe:
        assert len(pipe.read()) == 1_000_000
    assert process.communicate()[1] == b""
    assert process.returncode == 0


@full
def test_the_commands_keep_their_codes_without_a_listener(tmp_path):
    run = str(make_run(tmp_path, leave_out=(0,)))

    def code(*words, stdout):
        return subprocess.run(
            [sys.executable, "-m", "jobs.shared.cli", *words], cwd=ROOT, stdout=stdout, check=False
        ).returncode

    with Closed() as gone, FULL.open("w") as disk:
        assert code("status", run, stdout=gone) == 0
        assert code("verify", run, "--json", stdout=gone) == 1
        assert code("status", run, "--json", stdout=disk) == 4
        assert code("--help", stdout=disk) == 4


# -- letters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8", "utf-16", "ascii:strict"])
def test_a_process_says_any_text_in_any_code_page(encoding):
    text = f"{FOREIGN} {BYTES} █"
    script = f"def command():\n    print({text!r})\n    print({text!r}, file=sys.stderr)"
    done = ended(script, text=False, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout) == (0, done.stderr)
    said = done.stdout.decode(encoding.partition(":")[0])
    assert "\\udcff\\udcfe" in said
    assert FOREIGN in said or "\\u6f22\\u5b57" in said
    assert said.endswith(("█\n", "#\n"))


def in_ascii(monkeypatch):
    """stdout and stderr as an ASCII terminal's from now on; what they are told."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    return lambda: [stream.buffer.getvalue().decode("ascii") for stream in streams]


def test_no_name_ends_a_command(tmp_path, monkeypatch):
    place = tmp_path / FOREIGN
    content = [(FOREIGN, {"jpg": jpeg(1)}), (f"{FOREIGN}-2", {"jpg": f"no {FOREIGN}".encode()})]
    shard, run = str(write_shard(place / f"{FOREIGN}.tar", content)), str(place / "run")
    photo = place / f"{BYTES}.jpg"
    photo.write_bytes(jpeg(1))
    tiny = ["--model", "tiny", "--image-size", "64"]
    heard = in_ascii(monkeypatch)
    for code, words in [
        (3, ["label", shard, "--output", run, *tiny, "--workers", "0"]),
        (2, ["label", shard, "--output", run, *tiny, "--workers", "0", "--image-key", FOREIGN]),
        (2, ["label", str(place / f"{BYTES}.tar"), "--output", run, *tiny]),
        (0, ["status", run, "--detail"]),
        (0, ["verify", run, "--full"]),
        (0, ["export", run, "--format", "webdataset", "--output", str(place / "export")]),
        (0, ["compact", run]),
        (0, ["preview", run, "--output", str(place / "first.html")]),
        (0, ["segment", str(photo), *tiny, "--output", str(place)]),
        (0, ["plan", shard]),
        (0, ["pilot", shard, *tiny, "--samples", "2", "--output", str(place / "pilot.html")]),
        (2, ["segment", FOREIGN, *tiny]),
        (2, [FOREIGN]),
        (2, ["status", run, f"--{BYTES}"]),
        (2, ["label", shard, "--output", run, "--model", FOREIGN]),
    ]:
        assert cli.run(words) == code, words
    said, noted = heard()
    assert "\\u6f22\\u5b57" in said
    assert "\\u6f22\\u5b57" in noted
    assert "\\udcff\\udcfe" in said


def test_progress_and_long_cells_are_told_in_ascii(monkeypatch):
    heard = in_ascii(monkeypatch)
    monkeypatch.setattr(console, "_err", Console(stderr=True, force_terminal=True, width=40))
    cli.run(["--help"])
    console.note(f"{FOREIGN} {BYTES}")
    console.table(f"{FOREIGN} ±", [FOREIGN, "█"], [[60 * "漢", "█"]])
    with console.progress() as tick:
        console.note(FOREIGN)
        tick(Snapshot(1, {FOREIGN: 1}, 1, 1, 1.0, 1.0, 1, 1, 1, 1, 1, (FOREIGN,)))
    assert "\\u6f22" in "".join(heard())


def test_a_config_is_read_as_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(f'# {FOREIGN}\n[run]\nimage_key = "{FOREIGN}"\n'.encode())
    script = "from pathlib import Path\nfrom pipeline.config import read_config\n"
    script += f"def command():\n    print(ascii(read_config(Path({str(path)!r}), {{}}, {{}})[1].image_key))"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert ended(script, env=plain).stdout == f"{FOREIGN!a}\n"


# -- native threads ------------------------------------------------------------------------------------------------

TABLES = """
import io, os
from pipeline import table
from pipeline.table.filter import parse_filter
data, shards, rows = (io.BytesIO(bytes.fromhex(one)) for one in sys.argv[1:])

def command():
    threads = len(os.listdir("/proc/self/task"))
    metadata = table.read_window_metadata(data)
    assert table.encode_window(table.read_records(data), metadata)
    condition = parse_filter("num_segments > 5 or quality > 0.5")
    assert [row["key"] for row in table.read_rows(data, ["key"], filter=condition)] == ["a"]
    assert not list(table.decode_shards(shards.getvalue()))
    assert table.decode_rows(rows.getvalue())[0]
    out = io.BytesIO()
    with table.concat.joining_windows(out, []) as add:
        add(data)
    assert table.concat.read_window_list(out) == b"[]"
    images = io.BytesIO()
    with table.images.writing_features(images, {"image": {"_type": "Image"}}, 1, {}) as write:
        write({"image": {"bytes": b"x", "path": "x.jpg"}})
    assert list(table.images.read_images(images, "x"))
    print(len(os.listdir("/proc/self/task")) - threads)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_nothing_of_pythons_is_lent_to_arrows_threads():
    """They drop it when they please: after the interpreter's end it costs the process, with 134."""
    given = (table.encode_window(ROWS, METADATA), table.encode_shards([]), table.encode_rows([{"a": 1}]))
    words = [sys.executable, "-c", f"import sys\nfrom pipeline import process\n{TABLES}\nprocess.run(command)"]
    done = subprocess.run(
        [*words, *(one.hex() for one in given)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_complete_ends_with_0_beside_a_busy_core(tmp_path):
    script = ROOT / "infra" / "benchmarks" / "exits.py"
    words = [sys.executable, str(script), "--runs", "30", "--folder", str(tmp_path), "label"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| label | 30 | 30 x 0 |" in done.stdout
