"""`reader` in run.json: a run goes on by the rules of what a sample is that it began with, 1 where it does not say."""

import json

import pytest
from conftest import a_run, samples, write_shard

from pipeline.audit import audit
from pipeline.errors import ConfigError
from pipeline.faults import FakeSegmenter
from pipeline.joining import reader_of
from pipeline.ledger import Ledger
from pipeline.records import READER
from pipeline.run import Run
from pipeline.shards import pin
from pipeline.worker import Worker


def without_reader(run):
    """run.json as 0.1.0 wrote it."""
    said = json.loads(run.to_json())
    del said["reader"]
    return json.dumps(said).encode()


def begun_by_0_1_0(tmp_path, patterns, **changes):
    """A run whose run.json and inputs are those of the first version, with nothing labelled yet."""
    output = tmp_path / "run"
    Ledger.start(str(output), a_run(reader=1, **changes), pin(patterns, reader=1))
    (output / "run.json").write_bytes(without_reader(a_run(**changes)))
    return str(output)


def finish(ledger):
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.unfinished()))
    return [fault for shard in audit(Ledger.open(ledger.store.url), full=True) for fault in shard.faults]


def test_a_run_that_does_not_say_is_of_reader_1_and_a_new_one_of_the_newest(tmp_path):
    assert Run.from_json(without_reader(a_run())).reader == 1
    assert Run.from_json(a_run().to_json()).reader == READER == 2
    assert reader_of(str(tmp_path / "none")) == READER


def test_every_shard_of_a_run_is_read_by_the_rules_of_the_run(tmp_path):
    pattern = str(write_shard(tmp_path / "s.tar", samples(10)))
    output = begun_by_0_1_0(tmp_path, [pattern])
    assert reader_of(output) == 1
    ledger = Ledger.start(output, a_run(reader=1), pin([pattern], reader_of(output)))
    assert {task.shard.reader for task in ledger.unfinished()} == {1}
    assert finish(ledger) == []
    assert {shard.reader for shard in Ledger.open(output).shards.values()} == {1}


def test_who_joins_with_shards_listed_by_other_rules_is_refused(tmp_path):
    pattern = str(write_shard(tmp_path / "s.tar", samples(1)))
    output = begun_by_0_1_0(tmp_path, [pattern])
    with pytest.raises(ConfigError, match="reader: 1 there, 2 here"):
        Ledger.start(output, a_run(), pin([pattern]))


def test_a_run_of_a_later_reader_is_refused_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_bytes(json.dumps({**json.loads(a_run().to_json()), "reader": 3}).encode())
    for opening in (reader_of, Ledger.open):
        with pytest.raises(ConfigError, match="rules 3, this version knows") as caught:
            opening(str(tmp_path / "run"))
        assert "\n" not in str(caught.value)
