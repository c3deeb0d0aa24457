"""A run on storage: committed windows are done, missing ones are known, and nothing foreign is mixed in."""

import json
import threading
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from diffseg import config
from diffseg.config import ResolvedConfig, SegmentConfig
from pipeline import labelling, table
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.config import RunConfig
from pipeline.documents import validated
from pipeline.errors import CommitConflict, ConfigError, StorageError, StorageFull
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord, Shard
from pipeline.run import open
from pipeline.run.commit import End
from pipeline.run.layout import ShardState, WindowObject, gaps, prefixes, read_listing, window_name
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.run.verify import audit
from pipeline.storage.object_store import Store
from pipeline.table.label_map import encode_label_map
from pipeline.worker.worker import Worker
from tests.conftest import SEGMENT, a_run, samples, write_shard

SHARD = Shard("s-1", "file:///s.tar", 10, "e")


PNG = encode_label_map(np.zeros((1, 1), np.int32))


def rows(shard, first, count=4, status=OK):
    return [LabelRecord(f"{i:04d}", shard.id, i, status, None, 1, 1, PNG) for i in range(first, first + count)]


def commit(ledger, shard, window, count=4, generation=0, status=OK):
    task = ShardTask(shard, revision=generation)
    return ledger.writer.commit(task, window, rows(shard, window * ledger.run.window, count, status), 0, 0.0)


def state_of(windows, *, ended=False):
    return ShardState({n: WindowObject("s-1", n, 0, window_name("s-1", n), 1) for n in windows}, ended)


@pytest.mark.parametrize(
    ("there", "count", "missing"),
    [
        ((), None, [(0, None)]),
        ((0, 1), None, [(2, None)]),
        ((1, 4), None, [(0, 0), (2, 3), (5, None)]),
        ((0, 1), 2, []),
        ((0, 2), 3, [(1, 1)]),
        ((0,), 3, [(1, 2)]),
        ((), 0, []),
        ((), 2, [(0, 1)]),
        ((0, 2), "ended", [(1, 1)]),
        ((), "ended", []),
    ],
)
def test_gaps_are_what_completes_a_shard(there, count, missing):
    found = gaps(SHARD, state_of(there, ended=count is not None), None if count == "ended" else count)
    assert [(task.first_window, task.last_window) for task in found] == missing


def test_a_listing_gives_the_highest_retry_of_each_window_and_keeps_the_names_of_strangers():
    names = ["a.000000.parquet", "a.000000.r2.parquet", "a.000000.r10.parquet", "a.000001.parquet", "a.end.json"]
    names += ["b.end.json", "c.000000.parquet.tmp", "c.0.parquet", "c.xyz.parquet", "c.000000.r.parquet", "notes.txt"]
    found = read_listing((f"labels/{name}", 7, "") for name in names)
    assert {shard for shard, state in found.items() if state.windows or state.ended} == {"a", "b"}
    assert [stray for state in found.values() for stray in state.strays] == [f"labels/{name}" for name in names[6:]]
    assert found["a"].size == 5 * 7
    assert not read_listing([("labels/", 0, ""), ("labels/.DS_Store", 9, ""), ("labels/._a.000000.parquet", 9, "")])
    assert {n: w.revision for n, w in found["a"].windows.items()} == {0: 10, 1: 0}
    assert found["a"].ended
    assert not found["b"].windows


def test_a_run_is_found_again_as_it_was_begun(ledger):
    again = Ledger.open(ledger.store.url)
    assert again.run == ledger.run
    assert list(again.shards.values()) == list(ledger.shards.values())


def test_no_run_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no run here"):
        Ledger.open(str(tmp_path))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"run\.json"):
        Ledger.open(str(tmp_path))


def test_a_list_of_inputs_that_is_damaged_is_told_in_one_line(ledger, tmp_path):
    (tmp_path / "run/inputs/0.parquet").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"inputs/0\.parquet"):
        Ledger.open(ledger.store.url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segment": replace(SEGMENT, mode="paper"), "fingerprint": "g"}, "mode: fast there, paper here"),
        ({"weights_sha256": "1", "fingerprint": "g"}, "weights_sha256"),
        ({"window": 5}, "window: 4 there, 5 here"),
        ({"image_key": "png"}, "image_key"),
        ({"also": ("webdataset",)}, "also"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(ledger, change, said):
    with pytest.raises(ConfigError, match=said):
        Ledger.start(ledger.store.url, a_run(**change), list(ledger.shards.values()))


WRITTEN_BY_0_1_0 = b"""{
  "fingerprint": "ccbdcf20829975b8",
  "model": "tiny",
  "revision": null,
  "weights_sha256": "1471ad4bd7af230057d5d84566ab4c5aca7b2616cb43eef46d7b3618fb48a1b2",
  "segment": {
    "mode": "fast", "thresholds": [0.3, 0.3, 0.3], "anchors_per_side": 16, "refine": false, "timestep": 50,
    "image_size": 256, "output_size": 1024, "min_area": 0.001, "split_components": false, "dtype": "float32",
    "compile": false
  },
  "window": 4,
  "image_key": null,
  "also": [],
  "schema": 1,
  "made_with": {}
}"""


def test_a_run_of_0_1_0_is_joined_and_stays_as_it_is(shards, tmp_path):
    shards = pin([shard.url for shard in shards], 1)
    store = Store(str(tmp_path / "old"))
    store.put_new("run.json", WRITTEN_BY_0_1_0)
    joined = labelling.open_run(shards, store.url, "tiny", SegmentConfig(edges=False, tree=False), RunConfig())
    assert (joined.run.fingerprint, joined.run.window) == ("ccbdcf20829975b8", 4)
    assert json.loads(json.dumps(joined.run.segment.to_dict())) == json.loads(WRITTEN_BY_0_1_0)["segment"]
    assert store.get("run.json") == WRITTEN_BY_0_1_0
    with pytest.raises(ConfigError, match=r"thresholds: \[0\.3, 0\.3, 0\.3\] there"):
        labelling.open_run(shards, store.url, "tiny", SegmentConfig(edges=False, thresholds=(0.5,)), RunConfig())
    with pytest.raises(ConfigError, match="it was begun with --no-edges --no-tree"):
        labelling.open_run(shards, store.url, "tiny", SegmentConfig(), RunConfig())


def test_a_licence_is_recorded_and_keeps_no_driver_out(shards, tmp_path):
    begun = labelling.open_run(shards, str(tmp_path / "new"), "tiny", SegmentConfig(), RunConfig()).run
    assert json.loads((tmp_path / "new" / "run.json").read_text())["licence"] == "apache-2.0"
    assert Run.from_json(begun.to_json()) == begun
    without = replace(begun, licence=None)
    assert b"licence" not in without.to_json()
    assert begun.refusal(without) is None
    assert without.refusal(replace(begun, licence="unknown")) is None
    assert without.fingerprint == begun.fingerprint


def rewrite_run(ledger, **changes):
    """Change run.json as another version or a person could."""
    said = json.loads(ledger.store.get("run.json"))
    said["segment"] |= changes.pop("segment", {})
    ledger.store.replace("run.json", json.dumps(said | changes).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0123456789abcdef"},
        {"segment": {"thresholds": [0.5]}},
        {"segment": {"min_area": 0.5}},
        {"weights_sha256": "1"},
    ],
)
def test_a_run_json_that_was_edited_is_told_by_label_and_verify(ledger, change):
    rewrite_run(ledger, **change)
    with pytest.raises(ConfigError, match=r"run\.json was edited"):
        Ledger.start(ledger.store.url, a_run(), [])
    asked = validated(ResolvedConfig, SEGMENT.to_dict() | change.get("segment", {}))
    with pytest.raises(ConfigError, match=r"run\.json was edited"):
        Ledger.start(ledger.store.url, Run.of(asked, "0", model="fake", revision=None, window=4), [])
    faults = [str(fault) for checked in audit(Ledger.open(ledger.store.url)) for fault in checked.faults]
    assert any("run.json was edited" in fault for fault in faults)


@pytest.mark.parametrize(("raised", "said"), [(2, "labels version 2, the run has 1"), (9, "labels version 9, the")])
def test_labels_of_another_version_are_not_put_beside_those_of_a_run(ledger, monkeypatch, raised, said):
    for each in (config, open):
        monkeypatch.setattr(each, "LABELS_VERSION", {"paper": 1, "fast": raised})
    with pytest.raises(ConfigError, match=said + r".*another --output, or diffseg \d"):
        Ledger.start(ledger.store.url, a_run(), [])
    assert not [fault for checked in audit(ledger) for fault in checked.faults if "edited" in str(fault)]


def test_a_run_of_a_newer_version_is_not_joined_by_an_older_one(ledger, monkeypatch):
    monkeypatch.setattr(config, "LABELS_VERSION", {"paper": 1, "fast": 3})
    newer = a_run()
    monkeypatch.undo()
    ledger.store.replace("run.json", newer.to_json())
    with pytest.raises(ConfigError, match="labels version 1, the run has 3"):
        Ledger.start(ledger.store.url, a_run(), [])


def test_a_number_written_in_another_way_is_no_edit(ledger):
    written = {**SEGMENT.to_dict(), "thresholds": [1], "min_area": 0}
    rewrite_run(ledger, segment=written, fingerprint=config._hash(written, "0", 1))
    data = ledger.store.get("run.json")
    asked = Run.of(replace(SEGMENT, min_area=0.0), "0", model="fake", revision=None, window=4)
    joined = Ledger.start(ledger.store.url, asked, [])
    assert (joined.run.segment.min_area, joined.run.labels_version) == (0, 1)
    assert not [fault for checked in audit(joined) for fault in checked.faults if "edited" in str(fault)]
    assert ledger.store.get("run.json") == data


def test_a_configuration_of_a_newer_version_is_refused_with_what_is_new(ledger):
    rewrite_run(ledger, segment={"flavour": "vanilla", "taste": 0.3})
    for opened in (Ledger.open, lambda url: Ledger.start(url, a_run(), [])):
        with pytest.raises(
            ConfigError, match=r"run\.json: segment has flavour, taste, which this version of diffseg does not know"
        ):
            opened(ledger.store.url)


def test_what_a_newer_version_says_of_a_run_is_read_past_kept_and_not_joined(ledger):
    rewrite_run(ledger, flavour={"of": ["the", "future"]})
    opened = Ledger.open(ledger.store.url).run
    assert opened.segment == ledger.run.segment
    assert json.loads(opened.to_json())["flavour"] == {"of": ["the", "future"]}
    with pytest.raises(ConfigError, match=r"flavour: .*future.* there, None here"):
        Ledger.start(ledger.store.url, a_run(), [])


@pytest.mark.parametrize(
    "broken",
    [
        {"segment": None},
        {"segment": "fast"},
        {"segment": {"mode": "best"}},
        {"segment": {"thresholds": "many"}},
        {"segment": {"thresholds": [None]}},
        {"segment": {"output_size": None}},
        {"segment": {name: value for name, value in SEGMENT.to_dict().items() if name != "timestep"}},
        {"window": "many"},
        {"window": 0},
        {"fingerprint": 7},
        {"also": 3},
        {"also": [["a"]]},
        {"image_key": 3},
        {"made_with": "me"},
        {"licence": 7},
        {"reader": "third"},
    ],
)
def test_a_damaged_run_json_is_one_line(ledger, broken):
    said = json.loads(ledger.store.get("run.json"))
    ledger.store.replace("run.json", json.dumps(said | broken).encode())
    for opened in (Ledger.open, lambda url: Ledger.start(url, a_run(), [])):
        with pytest.raises(ConfigError, match=r"run\.json: ") as raised:
            opened(ledger.store.url)
        assert "\n" not in str(raised.value)


def test_shards_the_run_was_begun_without_need_extend(ledger, tmp_path):
    write_shard(tmp_path / "more.tar", samples(3))
    more = [*ledger.shards.values(), *pin([str(tmp_path / "more.tar")])]
    with pytest.raises(ConfigError, match="--extend"):
        Ledger.start(ledger.store.url, a_run(), more)
    assert len(Ledger.start(ledger.store.url, a_run(), more, extend=True).shards) == 4
    assert len(Ledger.open(ledger.store.url).shards) == 4
    assert [name for name, _ in ledger.store.list("inputs/")] == ["inputs/0.parquet", "inputs/1.parquet"]


def test_fewer_shards_than_the_run_has_are_no_other_run(ledger):
    assert len(Ledger.start(ledger.store.url, a_run(), list(ledger.shards.values())[:1]).shards) == 3


def test_drivers_that_extend_at_once_both_get_their_shards(ledger, tmp_path):
    given = [write_shard(tmp_path / f"more-{i}.tar", samples(i + 1)) for i in range(6)]
    start = threading.Barrier(6)

    def extend(path):
        start.wait()
        Ledger.start(ledger.store.url, a_run(), pin([str(path)]), extend=True)

    threads = [threading.Thread(target=extend, args=(path,)) for path in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger.open(ledger.store.url).shards) == 9


def test_a_shard_that_changed_since_the_run_began_is_refused(ledger):
    shard = next(iter(ledger.shards.values()))
    with pytest.raises(ConfigError, match="not the shard this run began with"):
        Ledger.start(ledger.store.url, a_run(), [replace(shard, etag="other")])


def test_a_store_that_ignores_the_condition_is_noticed(ledger, monkeypatch):
    monkeypatch.setattr(Store, "put_new", lambda self, name, data: self.replace(name, data))
    assert not Ledger.start(ledger.store.url, a_run(), list(ledger.shards.values())).store.create_only
    monkeypatch.undo()
    assert Ledger.start(ledger.store.url, a_run(), list(ledger.shards.values())).store.create_only


@pytest.mark.parametrize("error", [StorageError("s3://b: away"), StorageFull("/x: no space left")])
def test_storage_that_fails_at_the_start_is_a_matter_of_configuration(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Store, "put_new", fail)
    with pytest.raises(ConfigError, match=str(error)):
        Ledger.start(str(tmp_path / "run"), a_run(), [SHARD])


def test_a_disk_that_is_nearly_full_is_told_before_the_run_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(ConfigError, match="only 0 MB are left"):
        Ledger.start(str(tmp_path / "run"), a_run(), [SHARD])


# -- commits -------------------------------------------------------------------------------------------------------


def test_a_window_is_committed_once_and_a_twin_counts_as_waste(ledger):
    shard = next(iter(ledger.shards.values()))
    first = commit(ledger, shard, 0)
    twin = commit(Ledger.open(ledger.store.url), shard, 0)
    assert (first.wasted, twin.wasted) == (False, True)
    assert (first.rows, first.failed) == (4, ())


def test_a_window_whose_reply_was_lost_is_not_waste(ledger, monkeypatch):
    shard = next(iter(ledger.shards.values()))
    put = ledger.store.put_new
    monkeypatch.setattr(ledger.store, "put_new", lambda name, data: put(name, data) and False)
    assert not commit(ledger, shard, 0).wasted
    assert len(list(ledger.windows())) == 1


@pytest.mark.parametrize(
    "stranger", [{"fingerprint": "other"}, {"etag": "other"}, {"size": 1}, {"url": "file:///other.tar"}]
)
def test_something_else_in_a_windows_place_is_an_error(ledger, stranger):
    shard = next(iter(ledger.shards.values()))
    commit(ledger, shard, 0)
    [window] = ledger.windows()
    theirs = replace(ledger.window_metadata(window), attempt="x", **stranger)
    ledger.store.replace(window.name, table.encode_window(rows(shard, 0), theirs))
    with pytest.raises(CommitConflict, match="expected"):
        commit(ledger, shard, 0)


def test_garbage_in_a_windows_place_is_an_error(ledger):
    shard = next(iter(ledger.shards.values()))
    ledger.store.put_new(window_name(shard.id, 0), b"garbage")
    with pytest.raises(CommitConflict):
        commit(ledger, shard, 0)


def test_of_many_committers_of_one_window_one_wins(ledger):
    shard = next(iter(ledger.shards.values()))
    ledgers = [Ledger.open(ledger.store.url) for _ in range(24)]
    start, receipts = threading.Barrier(24), []

    def race(mine):
        start.wait()
        receipts.append(commit(mine, shard, 1))

    threads = [threading.Thread(target=race, args=(mine,)) for mine in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not receipt.wasted for receipt in receipts) == 1
    assert len(list(ledger.rows())) == 4


def test_an_end_is_written_only_when_its_windows_are_there(ledger):
    shard = next(iter(ledger.shards.values()))
    commit(ledger, shard, 0)
    assert not ledger.writer.commit_end(shard, 3, 10, {2})
    assert ledger.end(shard.id) is None
    commit(ledger, shard, 1)
    assert ledger.writer.commit_end(shard, 3, 10, {2})
    assert ledger.writer.commit_end(shard, 3, 10, {0, 1, 2})
    assert ledger.end(shard.id) == End(shard.id, 3, 10, shard.size, shard.etag)
    with pytest.raises(CommitConflict, match="something else"):
        ledger.writer.commit_end(shard, 3, 11, {0, 1, 2})


def test_windows_that_vanish_behind_an_end_are_missing_again(ledger, tmp_path):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    assert ledger.missing() == []
    (tmp_path / "run" / window_name(shard.id, 2)).unlink()
    assert [(t.shard.id, t.first_window, t.last_window) for t in ledger.missing()] == [(shard.id, 2, 2)]
    assert list(ledger.unfinished()) == []  # a listing cannot show it: the audit does
    (tmp_path / "run" / window_name(shard.id, 0)).unlink()
    assert [(t.first_window, t.last_window) for t in ledger.unfinished()] == [(0, 0)]


@pytest.mark.parametrize(
    ("shards", "most", "expected"),
    [
        ([f"train-{n:03}-{7 * n:x}" for n in range(100)], 16, {f"train-0{n}" for n in range(10)}),
        ([f"train-{n:03}-{7 * n:x}" for n in range(100)], 9, {"train-0"}),
        (["cat-1", "dog-1", "dog-2"], 3, {"cat-1", "dog-1", "dog-2"}),
        (["one"], 16, {"one"}),
        (["a-1", "a-1-more", "a-2"], 2, {"a-1", "a-2"}),
    ],
)
def test_listings_side_by_side_are_as_many_as_names_allow_and_leave_no_shard_out(shards, most, expected):
    found = prefixes(shards, most)
    assert found == expected
    assert all(any(shard.startswith(beginning) for beginning in found) for shard in shards)


def test_a_resume_reads_a_listing_and_nothing_else(ledger, monkeypatch):
    list(Worker(ledger, FakeSegmenter()).run(list(ledger.unfinished())[:2]))
    again, lists = Ledger.open(ledger.store.url), []
    names = again.store.versions

    def listed(prefix):
        lists.append(prefix)
        return names(prefix)

    monkeypatch.setattr(again.store, "versions", listed)
    monkeypatch.setattr(again.store, "reader", lambda *_: pytest.fail("an object was read"))
    assert [task.shard for task in again.unfinished()] == list(again.shards.values())[2:]
    assert lists == ["labels/"]


def test_an_end_that_is_not_ours_is_an_error(ledger):
    shard = next(iter(ledger.shards.values()))
    ledger.store.put_new(f"labels/{shard.id}.end.json", b"{}")
    with pytest.raises(CommitConflict, match="no end record"):
        ledger.end(shard.id)


# -- retries -------------------------------------------------------------------------------------------------------


def test_windows_with_failed_rows_are_labelled_again_under_another_name(ledger):
    shard = next(iter(ledger.shards.values()))
    commit(ledger, shard, 0)
    commit(ledger, shard, 1, status="model_error")
    [task] = ledger.failed()
    assert (task.first_window, task.last_window, task.revision) == (1, 1, 1)
    assert ledger.left_of(task) == [task]
    commit(ledger, shard, 1, generation=1)
    assert ledger.left_of(task) == []
    assert ledger.failed() == []
    assert {row["status"] for row in ledger.rows()} == {OK}
    assert [w.revision for w in ledger.windows()] == [0, 1]


def test_failures_are_kept_for_people(ledger):
    ledger.writer.record_failure("s-1", {"error": "why"})
    [(name, _)] = ledger.store.list("failures/")
    assert json.loads(ledger.store.get(name)) == {"error": "why"}
