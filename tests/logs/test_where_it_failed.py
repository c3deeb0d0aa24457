"""A fault of ours in a worker: its file and line stand in the log, in `failures/` and in `diffseg status --detail`."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from jobs.shared import cli
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.cluster import Cluster
from pipeline.cluster.parallel import parallel_mapping
from pipeline.config import RunConfig
from pipeline.driver import circuit_breaker
from pipeline.errors import RayLost, Stopped
from pipeline.inputs.shards import pin
from pipeline.labelling import Summary, finish
from pipeline.logs.records import written
from pipeline.logs.text import traceback_of
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import encode_label_map
from pipeline.worker import labeling
from pipeline.worker.build import WorkerSettings
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, write_shard

Encode = Callable[[np.ndarray], bytes]
DARK = 7  # columns, of the fourth sample alone: see `conftest.jpeg`


@pytest.fixture
def planted() -> Encode:
    """An encoder of label maps that fails on one sample of the run, by a dictionary that lacks a key."""

    def encode(label_map: np.ndarray) -> bytes:
        known = {True: encode_label_map(label_map)}
        return known[bool((label_map[0] == label_map[0, 0]).sum() != DARK)]  # the line that is looked for

    return encode


def line_of(encode: Encode) -> str:
    """Where the planted encoder fails, as a traceback says it, and as one line does."""
    return f"tests/logs/test_where_it_failed.py:{encode.__code__.co_firstlineno + 2}"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where `label` writes its log."""
    return tmp_path / "log.txt"


def label(ledger: Ledger, log: Path, segmenter: type[FakeSegmenter] = FakeSegmenter) -> Summary:
    """Label a run in this process, with a log."""
    with written(logging.INFO, log, print, shown=False):
        return finish(ledger, "fake", RunConfig(workers=0), build=lambda _: Worker(ledger, segmenter(batch_size=3)))


def found_by_an_operator(ledger: Ledger, log: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that each of the three places names file and line."""
    path, _, number = line.rpartition(":")
    trace = f'{path}", line {number}, in encode'

    text = log.read_text()
    assert trace in text
    assert "ended: KeyError: False (pipeline/worker/labeling.py:" in text
    assert f"> {line})" in text

    records = [json.loads(ledger.store.get(name)) for name, _ in ledger.store.list("failures/workers.")]
    assert records
    assert all(trace in record["traceback"] and line in record["error"] for record in records)

    assert cli.run(["status", str(ledger), "--detail"]) == 0
    assert trace in capsys.readouterr().out
    assert cli.run(["status", str(ledger), "--detail", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["detail"]["failures"]
    assert any(trace in one["traceback"] for one in told)


def test_an_encoder_that_fails_is_found_from_the_log_from_failures_and_from_status(
    ledger, planted, log, capsys, monkeypatch
):
    monkeypatch.setattr(labeling, "encode_label_map", planted)
    summary = label(ledger, log)

    assert summary.totals.failed == {"poison": 1}
    found_by_an_operator(ledger, log, line_of(planted), capsys)
    records = log.read_text().splitlines()
    [first, *_] = [record for record in records if " pipeline.worker.host:" in record]
    _, level, run, worker, node, place, *_ = first.split(" ")
    assert (level, worker, node) == ("ERROR", "worker-0", "-")
    assert run.startswith("run-")
    assert place == f"{next(iter(ledger.shards))}/0"


def test_an_encoder_that_fails_on_most_samples_stops_the_run_with_its_line(tmp_path, log, monkeypatch, planted):
    shard = write_shard(tmp_path / "in" / "s.tar", [(f"{i}", {"jpg": jpeg(i)}) for i in range(32)])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(window=8), pin([str(shard)]))
    monkeypatch.setattr(circuit_breaker, "FIRST_CHECK", 1)
    monkeypatch.setattr(circuit_breaker, "MAX_FAILED", 0.0)
    monkeypatch.setattr(labeling, "encode_label_map", planted)
    with pytest.raises(Stopped, match=rf"\(1 poison\).*; a worker ended with .*> {re.escape(line_of(planted))}"):
        label(ledger, log)


def test_an_encoder_that_always_fails_stops_the_run_with_its_line(tmp_path, log, monkeypatch):
    shard = write_shard(tmp_path / "in" / "s.tar", [(f"{i}", {"jpg": jpeg(i)}) for i in range(64)])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(window=64), pin([str(shard)]))

    def encode(label_map: np.ndarray) -> bytes:
        raise KeyError("no such encoder")

    monkeypatch.setattr(labeling, "encode_label_map", encode)
    with pytest.raises(Stopped, match=r"KeyError: 'no such encoder' \(pipeline/worker/labeling.py:\d+ > tests/logs/"):
        label(ledger, log)

    ends = [line for line in log.read_text().splitlines() if " pipeline.worker.host:" in line]
    assert len(ends) == 6  # of more than forty workers
    [times] = re.findall(r"\(repeated (\d+) times\)", ends[-1])
    assert int(times) > 30
    assert len(list(ledger.store.list("failures/workers."))) < 10  # one for each way the encoder is called


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_on_ray_the_line_is_found_as_well(ledger, planted, log, capsys):
    def build(settings: WorkerSettings) -> Worker:
        cast("Any", labeling).encode_label_map = planted  # in the worker's process
        return Worker(Ledger.open(settings.output), FakeSegmenter(batch_size=3))

    with written(logging.INFO, log, print, shown=False):
        summary = finish(ledger, "fake", RunConfig(workers=1), build=build)

    assert summary.totals.failed == {"poison": 1}
    found_by_an_operator(ledger, log, line_of(planted), capsys)
    [first, *_] = [record for record in log.read_text().splitlines() if " pipeline.worker.host:" in record]
    _, _, run, worker, node, *_ = first.split(" ")
    assert run.startswith("run-")
    assert worker == "worker-0"
    assert len(node) == 12


def test_a_row_that_our_own_code_failed_on_names_the_line(ledger, log, monkeypatch):
    class Failing(FakeSegmenter):
        def segment(self, images):
            raise IndexError("out of range")

    label(ledger, log, Failing)

    [error] = {row["error"] for row in ledger.rows()}
    assert error.startswith("IndexError: out of range (pipeline/worker/labeling.py:")
    assert "tests/logs/test_where_it_failed.py:" in error
    text = log.read_text()
    told = [line for line in text.splitlines() if "has no labels" in line]
    assert len(told) == 6
    assert told[-1].endswith("(repeated 12 times)")


def test_damaged_input_leaves_no_traceback(tmp_path, log):
    shard = write_shard(tmp_path / "in" / "d.tar", [(f"{i}", {"jpg": jpeg(i)}) for i in range(4)])
    shard.write_bytes(shard.read_bytes()[:3000])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(shard)]))
    summary = label(ledger, log)

    assert summary.faults
    text = log.read_text()
    assert "given up: CorruptShard" in text
    assert "Traceback" not in text
    [(name, _)] = ledger.store.list("failures/")
    assert "traceback" not in json.loads(ledger.store.get(name))


def retried(item: int) -> int:
    """A function of a parallel map that logs."""
    logging.getLogger("pipeline.storage.retry").warning("item %d was asked twice", item)
    return item


def test_what_processes_beside_this_one_log_is_in_the_log(log):
    with written(logging.INFO, log, print, shown=False), parallel_mapping(processes=1) as parallel_map:
        assert list(parallel_map(retried, range(2))) == [0, 1]
    lines = log.read_text().splitlines()
    assert [line.split(" ", 7)[-1] for line in lines] == ["item 0 was asked twice", "item 1 was asked twice"]


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_processes_of_a_cluster_log_is_in_the_log_and_an_error_has_its_line(log):
    def work(item: int) -> int:
        logging.getLogger("pipeline.storage.retry").warning("item %d was asked twice", item)
        return 6 // item

    with written(logging.INFO, log, print, shown=False), Cluster() as cluster:
        with pytest.raises(ZeroDivisionError) as raised:
            list(cluster.map(work, [1, 0]))
        with pytest.raises(RayLost, match="fails"):
            cluster.call("no such call")
    text = log.read_text()
    assert "item 1 was asked twice" in text
    assert f'test_where_it_failed.py", line {work.__code__.co_firstlineno + 2}, in work' in traceback_of(raised.value)
    assert "AttributeError: 'RayServer' object has no attribute 'no such call'" in text
