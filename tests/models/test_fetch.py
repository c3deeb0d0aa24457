"""Models on storage: copied there once with what they are, and from there to a machine once for all its processes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import huggingface_hub
import pytest

from diffseg.models import fetch
from diffseg.models.cache import ORIGIN, create_once
from diffseg.models.load import check
from infra.embedded.checkpoints import random_checkpoint
from jobs.shared import cli
from tests.models.test_files import UNET, FakeHub, copies, offer
from tests.models.test_wrong_models import in_parts
from tests.support.processes import servers

RACER = """
import json, sys
from diffseg.models.fetch import fetch
files = fetch(sys.argv[1])
print(json.dumps([str(files.folder), files.revision, files.sha256]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return random_checkpoint("tiny", tmp_path_factory.mktemp("fetch") / "saved", small=True)


@pytest.fixture
def place():
    return f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}/model"


def racers(count, url, cache):
    """Processes of one machine that want the same model at the same time."""
    environment = {**os.environ, "DIFFSEG_CACHE": str(cache)}
    command = [sys.executable, "-c", RACER, url]
    return [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def downloads(s3):
    return [path for method, path in s3.requests if method == "GET" and path.partition("?")[0].endswith(".safetensors")]


def test_a_hub_model_is_copied_to_storage_with_its_commit_and_hash(monkeypatch, saved, tmp_path, capsys):
    hub = offer(monkeypatch, FakeHub(saved))
    target = tmp_path / "sd15"
    assert cli.run(["fetch", "sd1.5", str(target), "--revision", "v2"]) == 0
    assert hub.calls[0][0] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    told = capsys.readouterr().out
    note = json.loads((target / ORIGIN).read_text())
    assert note["revision"] == "c0ffee"
    assert note["sha256"] == fetch.fetch(str(saved)).sha256
    assert f"at c0ffee, sha256 {note['sha256']}" in told
    assert f"{UNET}.safetensors" in note["files"]
    assert "model_index.json" not in note["files"]

    files = fetch.fetch(str(target))
    assert (files.revision, files.sha256) == ("c0ffee", note["sha256"])
    assert files.licence == "creativeml-openrail-m"  # as of the hub's


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("tiny", "apache-2.0"),
        ("sd1.4", "creativeml-openrail-m"),
        ("segmind/SSD-1B", "apache-2.0"),
        ("CompVis/stable-diffusion-v1-4@c0ffee", "creativeml-openrail-m"),
        ("another/finetune", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_licence_is_that_of_the_table_or_unknown(monkeypatch, saved, model, licence):
    offer(monkeypatch, FakeHub(saved))
    assert fetch.fetch(model or str(saved)).licence == licence


def test_weights_in_parts_go_through_an_object_store_as_they_are(s3, saved, place, tmp_path):
    model = Path(shutil.copytree(saved, tmp_path / "model"))
    for part in ("unet", "text_encoder"):
        in_parts(part, names="piece_{}.safetensors")(model)
    assert cli.run(["fetch", str(model), place]) == 0
    copy = fetch.fetch(place, tmp_path / "cache")
    assert copy.sha256 == fetch.fetch(str(model)).sha256
    check(copy)


def test_the_second_time_nothing_is_written(monkeypatch, saved, tmp_path, capsys):
    offer(monkeypatch, FakeHub(saved))
    arguments = ["fetch", "owner/name", str(tmp_path / "copy"), "--json"]
    assert cli.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["written"] > 0
    assert cli.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0


def test_a_copy_that_was_broken_off_is_finished(monkeypatch, saved, tmp_path):
    offer(monkeypatch, FakeHub(saved))
    target = tmp_path / "copy"
    assert cli.run(["fetch", "owner/name", str(target)]) == 0
    (target / f"{UNET}.safetensors").unlink()
    with pytest.raises(ValueError, match=f"no {UNET}.safetensors"):
        fetch.fetch(str(target))
    assert cli.run(["fetch", "owner/name", str(target)]) == 0
    assert fetch.fetch(str(target)).revision == "c0ffee"


def test_another_model_or_other_files_are_never_mixed_in(monkeypatch, saved, tmp_path, capsys):
    target = tmp_path / "copy"
    assert cli.run(["fetch", str(saved), str(target)]) == 0
    other = random_checkpoint("tiny", tmp_path / "other", small=True, seed=7)
    assert cli.run(["fetch", str(other), str(target)]) == 2
    assert "give another folder" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    assert cli.run(["fetch", str(saved), str(tmp_path / "photos")]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_copy_whose_bytes_changed_is_refused(saved, tmp_path):
    target = tmp_path / "copy"
    assert cli.run(["fetch", str(saved), str(target)]) == 0
    with (target / f"{UNET}.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match=r"is not the copy that fetched\.json tells of"):
        fetch.fetch(str(target))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path, capsys):
    offer(monkeypatch, FakeHub(None, ConnectionError("no network\nand more")))
    assert cli.run(["fetch", "sd1.5", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be reached" in line


def test_two_processes_of_a_node_download_a_model_once(s3, saved, place, tmp_path):
    assert cli.run(["fetch", str(saved), place]) == 0
    s3.requests.clear()
    s3.choose = lambda number, method, path: "slow" if "safetensors" in path else "sound"  # the race lasts
    found = [racer.communicate()[0] for racer in racers(2, place, tmp_path)]
    assert found[0] == found[1]
    got = downloads(s3)
    assert len(got) == len(set(got)) == 3
    folder, revision, sha256 = json.loads(found[0])
    assert (revision, sha256) == (None, fetch.fetch(str(saved)).sha256)
    assert copies(tmp_path) == [folder]


def test_a_download_whose_process_was_killed_is_begun_again_by_the_one_that_waits(s3, saved, place, tmp_path):
    assert cli.run(["fetch", str(saved), place]) == 0
    s3.requests.clear()
    s3.choose = lambda number, method, path: "slow" if "safetensors" in path else "sound"
    [first] = racers(1, place, tmp_path)
    while not list(tmp_path.glob(".partial-*")):
        time.sleep(0.02)
        assert first.poll() is None
    [second] = racers(1, place, tmp_path)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    folder, *_ = json.loads(second.communicate()[0])
    assert copies(tmp_path) == [folder]


def test_storage_that_refuses_in_the_middle_is_one_line_and_leaves_nothing(s3, saved, place, tmp_path, monkeypatch):
    assert cli.run(["fetch", str(saved), place]) == 0
    s3.choose = lambda number, method, path: "cut in the body" if "safetensors" in path and method == "GET" else "sound"
    with pytest.raises(OSError, match=r"cannot be copied|arrived short") as failure:
        fetch.fetch(place, tmp_path)
    assert "\n" not in str(failure.value)
    assert copies(tmp_path) == []


@pytest.mark.parametrize("fault", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_folder_appears_once_on_a_disk_without_locks(fault, tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(fault, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    calls: list[Path] = []
    for _ in range(2):
        create_once(tmp_path / "a" / "model", calls.append)
    assert len(calls) == 1


def test_no_hub_is_asked_for_a_copy(monkeypatch, saved, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert cli.run(["fetch", str(saved), str(tmp_path / "copy")]) == 0
    assert fetch.fetch(str(tmp_path / "copy")).revision is None
