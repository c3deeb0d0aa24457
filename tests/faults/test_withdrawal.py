"""Samples withdrawn from a run that was compacted, exported and categorised: no reader shows them any more."""

import io
import json
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from jobs.shared import cli
from pipeline.datasets import Example, RunDataset, RunStream
from pipeline.derived.joined import open_run
from pipeline.records import digest_of_key
from pipeline.run.ledger import Ledger
from tests.conftest import write_shard

KEYS = [f"person-{number:02}" for number in range(24)]
GONE = [KEYS[number] for number in (0, 1, 2, 5, 8, 9, 13, 17, 21, 23)]
LEFT = [key for key in KEYS if key not in GONE]


def photo(number):
    picture = Image.effect_noise((64, 48), 90).convert("RGB")
    picture.paste((number * 10, 90, 255 - number * 10), (8, 8, 30, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def said(capsys, *words):
    code = cli.run([str(word) for word in words])
    seen = capsys.readouterr()
    assert "Traceback" not in seen.err
    return code, seen.out + seen.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    for half in range(2):
        shard = [(key, {"jpg": photo(n), "txt": key.encode()}) for n, key in enumerate(KEYS) if n % 2 == half]
        write_shard(folder / "in" / f"{half}.tar", shard)
    words = ["label", f"{folder}/in/*.tar", "--output", f"{folder}/run", "--model", "tiny", "--workers", "0"]
    words += ["--window", "4", "--also", "webdataset", "--vectors"]
    assert cli.run(words) == 0
    assert cli.run(["compact", f"{folder}/run"]) == 0
    assert cli.run(["categories", f"{folder}/run", "--clusters", "2"]) == 0
    return folder, words


@pytest.fixture
def run(finished, tmp_path):
    """The run where it was made, and a copy of it put back afterwards: its inputs are absolute."""
    folder, words = finished
    shutil.copytree(folder / "run", tmp_path / "kept")
    yield folder / "run", words
    shutil.rmtree(folder / "run")
    shutil.copytree(tmp_path / "kept", folder / "run")


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(GONE))
    return path


def shown(run, tmp_path, capsys, tag):
    """All keys that any reader shows, and all text that it prints or writes."""
    read = {row["key"] for row in Ledger.open(str(run)).rows()}
    read |= {row["key"] for row in open_run(str(run), categories="categories").rows(["key", "segments"])}
    stream: RunStream[Example] = RunStream(str(run))
    read |= {sample.key for sample in stream}
    data: RunDataset[Example] = RunDataset(str(run))
    assert len(data) == len(read)
    out = tmp_path / tag
    assert said(capsys, "export", run, "--format", "coco-panoptic", "--output", out / "coco")[0] == 0
    assert said(capsys, "export", run, "--format", "webdataset", "--output", out / "wds")[0] == 0
    assert said(capsys, "preview", run, "--output", out / "page.html")[0] == 0
    assert said(capsys, "preview", run, "--categories", "categories", "--output", out / "named.html")[0] == 0
    assert said(capsys, "status", run, "--detail")[0] == 0
    return read, [path for path in out.rglob("*") if path.is_file()]


def holds(paths, needles):
    return {str(path) for path in paths if any(needle in path.read_bytes() for needle in needles)}


def test_no_reader_shows_what_was_withdrawn_and_after_a_purge_no_object_holds_it(run, keys, tmp_path, capsys):
    run, words = run
    assert said(capsys, "export", run, "--format", "png", "--output", tmp_path / "before")[0] == 0
    rows = {row["key"]: row for row in Ledger.open(str(run)).rows(stored=True)}
    secret = [value for key in GONE for value in (key.encode(), rows[key]["label_map"], rows[key]["leaf_map"])]
    secret += [rows[key]["image_sha256"].encode() for key in GONE]
    assert holds(run.rglob("*.parquet"), secret)
    (run / "failures").mkdir(exist_ok=True)
    (run / "failures" / "0-x.00000000.poison.json").write_text(
        json.dumps({"index": 0, "key": GONE[0], "error": "died"})
    )
    (run / "failures" / "0-x.00000000.poison.jpg").write_bytes(photo(0))
    (run / "failures" / "0-x.00000009.poison.json").write_text(
        json.dumps({"index": 9, "key": LEFT[0], "error": "died"})
    )

    code, text = said(capsys, "withdraw", run, "--keys", keys)
    assert (code, "10 keys are withdrawn, 10 rows" in text) == (0, True)
    read, files = shown(run, tmp_path, capsys, "after")
    assert read == set(LEFT)
    assert not holds(files, [key.encode() for key in GONE])
    assert said(capsys, "export", run, "--format", "png", "--output", tmp_path / "before")[0] == 2
    code, text = said(capsys, "verify", run, "--full")
    assert (code, "24 rows" in text, "10 keys are withdrawn" in text) == (0, True, True)
    assert said(capsys, "compact", run)[0] == 0

    code, text = said(capsys, "withdraw", run, "--keys", keys, "--purge")
    assert code == 0, text
    assert not holds((path for path in run.rglob("*") if path.is_file()), secret)
    tables = [path for path in run.rglob("*.parquet") if "labels" in str(path)]
    assert len(tables) == 6
    assert not (run / "failures" / "0-x.00000000.poison.jpg").exists()
    assert (run / "failures" / "0-x.00000009.poison.json").exists()
    read, files = shown(run, tmp_path, capsys, "purged")
    assert read == set(LEFT)
    assert not holds(files, [key.encode() for key in GONE])
    assert said(capsys, "verify", run, "--full")[0] == 0
    assert said(capsys, "withdraw", run, "--keys", keys, "--purge")[1].count("0 objects deleted") == 1

    for more in ([], ["--retry-failed"]):
        code, text = said(capsys, *words, *more)
        assert code == 0, text
    assert said(capsys, "compact", run)[0] == 0
    assert {row["key"] for row in Ledger.open(str(run)).rows()} == set(LEFT)
    assert not holds((path for path in run.rglob("*") if path.is_file()), secret)
    assert said(capsys, "verify", run, "--full")[0] == 0


def test_what_was_withdrawn_never_comes_back(run, keys, tmp_path, capsys):
    run, words = run
    assert said(capsys, "withdraw", run, "--keys", keys)[0] == 0
    write_shard(run.parent / "in" / "more.tar", [(GONE[0], {"jpg": photo(1)}), ("new", {"jpg": photo(2)})])
    shutil.rmtree(run / "compacted")
    for path in list((run / "labels").glob("0-*.000001.parquet")):
        path.unlink()
    code, text = said(capsys, *words, "--extend")
    assert code == 0, text
    (run.parent / "in" / "more.tar").unlink()
    assert {row["key"] for row in Ledger.open(str(run)).rows()} == {*LEFT, "new"}
    again = [row for row in Ledger.open(str(run)).rows(stored=True) if row["status"] == "withdrawn"]
    assert again
    assert all((row["key"], row["label_map"], row["image_sha256"]) == ("", None, None) for row in again)


LISTS = {
    "nothing": ("", 2, "no keys"),
    "keys of none": ("nobody\n", 2, "none of 1 keys is in this run, 'nobody' first"),
    "some of none": (f"{KEYS[3]}\nnobody\n", 3, "1 keys are of no sample yet, 'nobody' first"),
    "one twice": (f"{KEYS[3]}\n{KEYS[3]}\n", 0, "1 keys are withdrawn, 1 rows"),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists_of_keys(run, tmp_path, capsys, what):
    run, _ = run
    text, code, line = LISTS[what]
    (tmp_path / "keys.txt").write_text(text)
    found = said(capsys, "withdraw", run, "--keys", tmp_path / "keys.txt")
    assert (found[0], line in found[1]) == (code, True), found[1]
    assert not any(digest_of_key("nobody") in path.read_text() for path in run.glob("withdrawn/*")) or code == 3


def test_a_list_of_what_was_withdrawn_that_is_damaged_shows_nothing(run, keys, capsys):
    run, _ = run
    assert said(capsys, "withdraw", run, "--keys", keys)[0] == 0
    [listed] = (run / "withdrawn").iterdir()
    Path(listed).write_text("[1")
    code, text = said(capsys, "preview", run, "--output", run.parent / "page.html")
    assert (code, "no list of what was withdrawn" in text) == (2, True)


def test_no_purge_beside_a_driver_at_work(run, keys, capsys):
    run, _ = run
    note = {"at": time.time(), "left": False, "rows": 1, "failed": {}, "windows": 1, "images_per_s": 1.0}
    (run / "status" / "x.json").write_text(json.dumps({**note, "eta_s": None, "examples": []}))
    code, text = said(capsys, "withdraw", run, "--keys", keys, "--purge")
    assert (code, "a driver is at work" in text) == (2, True)
