"""verify: every planted fault is found, a sound run has none."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import table
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import completed, total, write_manifest
from pipeline.run.verify import audit
from pipeline.table.window_metadata import digest_of
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, samples, write_shard


@pytest.fixture
def done(ledger):
    """A finished run of shards of 10, 7 and 0 samples, four a window."""
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
    return ledger


def faults(ledger, *, full=False):
    return [fault.line for shard in audit(Ledger.open(ledger.store.url), full=full) for fault in shard.faults]


def rewrite(ledger, place, *, rows=None, **metadata):
    """Put another window in the place of one."""
    window = list(ledger.windows())[place]
    with ledger.store.reader(window.name) as stream:
        records = table.read_records(stream)
    records = records if rows is None else rows(records)
    said = replace(ledger.window_metadata(window), rows=len(records), **metadata)
    ledger.store.replace(window.name, table.encode_window(records, said))


def path(ledger, name):
    return Path(ledger.store.url.removeprefix("file://")) / name


def test_a_sound_run_has_no_fault(done):
    assert faults(done) == []
    assert faults(done, full=True) == []
    totals = total(audit(done))
    assert (totals.shards, totals.windows, totals.rows, totals.failed) == (3, 5, 17, {})


def first(ledger):
    return next(iter(ledger.shards.values()))


def drop_last_row(ledger):
    rewrite(ledger, 2, rows=lambda records: records[:-1])


def another_input(ledger):
    rewrite(ledger, 1, etag="other")


def another_configuration(ledger):
    rewrite(ledger, 1, fingerprint="other")


def short_window(ledger):
    rewrite(ledger, 0, rows=lambda records: records[:2])


def no_window(ledger):
    path(ledger, next(iter(ledger.windows())).name).unlink()


def no_last_window(ledger):
    path(ledger, list(ledger.windows())[2].name).unlink()


def no_end(ledger):
    path(ledger, f"labels/{first(ledger).id}.end.json").unlink()


def other_end(ledger):
    end = path(ledger, f"labels/{first(ledger).id}.end.json")
    end.write_text(end.read_text().replace('"rows": 10', '"rows": 12'))


def broken_end(ledger):
    path(ledger, f"labels/{first(ledger).id}.end.json").write_text("{")


def window_beyond_the_end(ledger):
    window = list(ledger.windows())[2]
    ledger.store.put_new(f"labels/{first(ledger).id}.000003.parquet", ledger.store.get(window.name))


def cut_window(ledger):
    window = path(ledger, next(iter(ledger.windows())).name)
    window.write_bytes(window.read_bytes()[:-50])


def no_window_at_all(ledger):
    path(ledger, next(iter(ledger.windows())).name).write_bytes(b"garbage")


def labels_of_a_stranger(ledger):
    window = next(iter(ledger.windows()))
    ledger.store.put_new("labels/stranger-000000000000.000000.parquet", ledger.store.get(window.name))


def windows_exchanged(ledger):
    one, other = (path(ledger, window.name) for window in list(ledger.windows())[:2])
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


PLANTED = [
    drop_last_row,
    another_input,
    another_configuration,
    short_window,
    no_window,
    no_last_window,
    no_end,
    other_end,
    broken_end,
    window_beyond_the_end,
    cut_window,
    no_window_at_all,
    labels_of_a_stranger,
    windows_exchanged,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_in_footers_and_ends(done, plant):
    plant(done)
    assert faults(done) != []


def other_labels(ledger):
    rewrite(ledger, 0, rows=lambda records: [replace(records[0], quality=0.25), *records[1:]])


def other_key(ledger):
    def rename(records):
        return [replace(records[0], key="other"), *records[1:]]

    window = next(iter(ledger.windows()))
    with ledger.store.reader(window.name) as stream:
        digest = digest_of(rename(table.read_records(stream)))
    rewrite(ledger, 0, rows=rename, digest=digest)


def flipped_byte(ledger):
    window = path(ledger, next(iter(ledger.windows())).name)
    data = bytearray(window.read_bytes())
    data[len(data) // 3] ^= 0xFF
    window.write_bytes(data)


def other_source(ledger):
    source = Path(first(ledger).url.removeprefix("file://"))
    before = source.stat()
    write_shard(source, [("x" + key[1:], members) for key, members in samples(10)])
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "plant", [other_labels, other_key, flipped_byte, other_source], ids=lambda plant: plant.__name__
)
def test_a_fault_that_only_every_byte_tells_is_found_by_a_full_audit(done, plant):
    plant(done)
    assert faults(done, full=True) != []


def test_why_a_shard_was_given_up_is_said(ledger):
    ledger.writer.record_failure(first(ledger).id, {"error": "damaged at byte 7"})
    assert "not read to its end; damaged at byte 7" in faults(ledger)[0]
    assert faults(ledger)[1].endswith("not read to its end")


def test_repeated_keys_are_counted_not_lost(tmp_path):
    write_shard(tmp_path / "s.tar", [("a", {"jpg": jpeg(1)}), ("b", {"jpg": jpeg(2)}), ("a", {"jpg": jpeg(3)})] * 2)
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "s.tar")]))
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    [checked] = audit(ledger, full=True)
    assert (checked.faults, checked.rows, checked.repeated_keys) == ((), 6, 4)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8])
def test_shards_of_every_length_are_proved(tmp_path, count):
    write_shard(tmp_path / "s.tar", samples(count))
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "s.tar")]))
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    [checked] = audit(ledger, full=True)
    assert (checked.faults, checked.rows, checked.windows) == ((), count, -(-count // 4))


# -- the manifest --------------------------------------------------------------------------------------------------


def test_a_run_declared_complete_is_known_without_an_audit(done):
    assert completed(done, done.states()) is None
    totals = write_manifest(done, list(audit(done)))
    assert completed(done, done.states()) == totals
    assert totals.rows == 17


@pytest.mark.parametrize("plant", [no_window, no_last_window, no_end], ids=lambda plant: plant.__name__)
def test_a_declaration_is_not_believed_while_what_it_lists_is_gone(done, plant):
    write_manifest(done, list(audit(done)))
    plant(done)
    assert completed(done, done.states()) is None


def test_a_declaration_without_its_manifest_is_not_believed(done):
    write_manifest(done, list(audit(done)))
    path(done, "manifest.0.parquet").unlink()
    assert completed(done, done.states()) is None


def test_an_extended_run_is_complete_again_only_with_its_new_shards(done, tmp_path):
    write_manifest(done, list(audit(done)))
    write_shard(tmp_path / "more.tar", samples(2))
    more = Ledger.start(done.store.url, a_run(), pin([str(tmp_path / "more.tar")]), extend=True)
    assert completed(more, more.states()) is None
    list(Worker(more, FakeSegmenter()).run(more.missing()))
    assert write_manifest(more, list(audit(more))).rows == 19
    totals = completed(more, more.states())
    assert totals is not None
    assert totals.rows == 19
    assert sorted(name for name, _ in more.store.list("_SUCCESS.")) == ["_SUCCESS.0", "_SUCCESS.1"]


def test_retried_windows_ask_for_another_declaration(done):
    shard = first(done)
    write_manifest(done, list(audit(done)))
    rows = [LabelRecord(f"{i:04d}", shard.id, i, OK) for i in range(4)]
    done.writer.commit(ShardTask(shard, revision=1), 0, rows, 0, 0.0)
    assert completed(done, done.states()) is None
    [checked, *_] = audit(done)
    assert (checked.faults, checked.retries, checked.rows) == ((), 1, 10)
