"""Edits of run.json and of the pins of a finished run: no command fails over them, `verify --repair` undoes them."""

import json

import pytest

from jobs.shared import cli
from pipeline import table
from pipeline.run.ledger import Ledger
from pipeline.run.repair import repair
from pipeline.storage.object_store import Store
from tests.faults import stories


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proved")
    stories.begin(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    stories.copy(finished, tmp_path)
    return tmp_path


def of_segment(**changed):
    return lambda run: {**run, "segment": {**run["segment"], **changed}}


RUNS = {
    "another window": lambda run: {**run, "window": 8},
    "no window": lambda run: {**run, "window": 0},
    "a window beyond sense": lambda run: {**run, "window": 10**30},
    "another fingerprint": lambda run: {**run, "fingerprint": "0" * 16},
    "another model": lambda run: {**run, "model": "other"},
    "a model that is a number": lambda run: {**run, "model": 7},
    "no model": lambda run: {name: value for name, value in run.items() if name != "model"},
    "other weights": lambda run: {**run, "weights_sha256": "1"},
    "rules of a later version": lambda run: {**run, "reader": 99},
    "rules of an older version": lambda run: {**run, "reader": 1},
    "a field of no version": lambda run: {**run, "colour": "blue"},
    "another image key": lambda run: {**run, "image_key": "png"},
    "another time step": of_segment(timestep=51),
    "a time step that is text": of_segment(timestep="late"),
    "a threshold that is none": of_segment(thresholds=[]),
    "a setting of no version": of_segment(colour="blue"),
    "a licence": lambda run: {**run, "licence": "none"},
}
PINS = {
    "another address": lambda rows: rows[0].update(url="file:///elsewhere/s-0.tar"),
    "another size": lambda rows: rows[0].update(size=rows[0]["size"] + 1),
    "a negative size": lambda rows: rows[0].update(size=-1),
    "a size beyond sense": lambda rows: rows[0].update(size=2**62),
    "another version": lambda rows: rows[0].update(etag="1"),
    "another id": lambda rows: rows[0].update(id="s-0-000000000000"),
    "two ids exchanged": lambda rows: [
        rows[0].update(id=rows[1]["id"]),
        rows[1].update(id="s-0-000000000000"),
    ],
    "an id that is a path": lambda rows: rows[0].update(id="../../etc"),
    "no id": lambda rows: [row.update(id=None) for row in rows],
    "a shard twice": lambda rows: rows.append(dict(rows[0])),
    "a shard less": lambda rows: rows.pop(),
    "a shard more": lambda rows: rows.append({**rows[0], "id": "s-9-000000000000", "url": "file:///s-9.tar"}),
    "text for sizes": lambda rows: [row.update(size="many") for row in rows],
    "a zero within a name": lambda rows: rows[0].update(url="file:///a\0b.tar"),
    "nothing": lambda rows: rows.clear(),
}


def no_command_fails(folder, capsys):
    assert cli.run(["status", str(folder / "run")]) in (0, 2)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) <= 1


def repaired(folder):
    told = list(repair(Store(str(folder / "run")), now=stories.NEVER))
    assert told
    assert all(mended for _, mended in told), told


@pytest.mark.parametrize("what", RUNS)
def test_run_json(folder, capsys, what):
    path = folder / "run" / "run.json"
    whole = path.read_bytes()
    path.write_text(json.dumps(RUNS[what](json.loads(whole))))
    no_command_fails(folder, capsys)
    repaired(folder)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("what", PINS)
def test_pins(folder, finished, capsys, what):
    path = folder / "run" / "inputs" / "0.parquet"
    rows, _ = table.decode_rows(path.read_bytes())
    PINS[what](rows)
    path.write_bytes(table.encode_rows(rows))
    no_command_fails(folder, capsys)
    repaired(folder)
    now, before = Ledger.open(str(folder / "run")), Ledger.open(str(finished / "run"))
    assert list(now.shards.values()) == list(before.shards.values())


def test_a_run_json_of_which_nothing_is_proved_costs_no_window(folder):
    for path in [*(folder / "run").glob("manifest.*"), *(folder / "run").glob("_SUCCESS.*")]:
        path.unlink()
    path = folder / "run" / "run.json"
    path.write_text(path.read_text().replace('"window": 4', '"window": 8'))
    [(line, mended)] = repair(Store(str(folder / "run")), now=stories.NEVER)
    assert "seem to be what was changed" in line
    assert not mended
    assert not (folder / "run" / "quarantine").exists()
