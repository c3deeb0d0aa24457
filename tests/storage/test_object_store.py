"""The folder of a run: objects appear whole or not at all, and the first writer wins."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError, StorageFull
from pipeline.storage import retry
from pipeline.storage.object_store import ABANDONED_S, Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def leftovers(store):
    return [name for name, _ in store.list("tmp/")]


def test_an_object_is_created_once(store):
    assert store.put_new("labels/a.parquet", b"first")
    assert not store.put_new("labels/a.parquet", b"second")
    assert store.get("labels/a.parquet") == b"first"
    assert leftovers(store) == []


def test_of_many_writers_one_wins_and_its_bytes_are_there(store):
    start = threading.Barrier(24)

    def write(number):
        start.wait()
        return store.put_new("labels/a.parquet", b"%02d" % number * 50_000)

    for turn in range(3):
        with ThreadPoolExecutor(24) as pool:
            won = [number for number, result in enumerate(pool.map(write, range(24))) if result]
        assert len(won) == 1, turn
        assert store.get("labels/a.parquet") == b"%02d" % won[0] * 50_000
        Path(store._path("labels/a.parquet")).unlink()
    assert leftovers(store) == []


def test_readers_never_see_a_part(store):
    data, seen, stop = b"x" * 3_000_000, set(), threading.Event()

    def watch():
        while not stop.is_set():
            if (size := store.size("labels/a.parquet")) is not None:
                seen.add(size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(10):
        store.put_new("labels/a.parquet", data)
        Path(store._path("labels/a.parquet")).unlink()
    stop.set()
    watcher.join()
    assert seen <= {len(data)}


def test_a_link_that_was_made_and_whose_reply_was_lost_is_ours(store, monkeypatch):
    link = os.link

    def lose_reply(source, target):
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", lose_reply)
    assert store.put_new("a", b"mine")
    assert store.get("a") == b"mine"
    assert leftovers(store) == []


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failed_write_leaves_nothing_behind(store, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(StorageFull, match="no space left"):
        store.put_new("a", b"data")
    assert not store.exists("a")
    assert leftovers(store) == []


def test_what_is_listed_begins_with_the_prefix_and_comes_in_order(store):
    for name in ("labels/b.000001.parquet", "labels/a.000000.parquet", "labels/b.end.json", "_SUCCESS.0", "run.json"):
        store.put_new(name, b"12345")
    assert list(store.list("labels/b.")) == [("labels/b.000001.parquet", 5), ("labels/b.end.json", 5)]
    assert list(store.list("_SUCCESS.")) == [("_SUCCESS.0", 5)]
    assert [name for name, _ in store.list("")] == sorted(
        ["_SUCCESS.0", "labels/a.000000.parquet", "labels/b.000001.parquet", "labels/b.end.json", "run.json"]
    )
    assert list(store.list("nothing/")) == []


def test_an_object_that_may_change_is_replaced_whole(store):
    store.replace("status/a.json", b"one")
    store.replace("status/a.json", b"two")
    assert store.get("status/a.json") == b"two"
    assert leftovers(store) == []


def test_what_is_not_there_is_not_found(store):
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.get("a")


def test_a_folder_is_no_object(store):
    store.put_new("labels/a", b"")
    assert not store.exists("labels")


def test_a_store_that_ignores_the_condition_still_never_overwrites_what_it_sees(store):
    store.create_only = False
    assert store.put_new("a", b"first")
    assert not store.put_new("a", b"second")
    assert store.get("a") == b"first"


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "/dev/null/run"])
def test_a_place_that_cannot_be_written_to_is_named(place):
    with pytest.raises(ConfigError, match=place):
        Store(place).put_new("run.json", b"x")


def test_a_web_server_is_no_place_for_a_run():
    with pytest.raises(ConfigError, match="not written to"):
        Store("https://127.0.0.1:1/run").put_new("run.json", b"x")


class Flaky:
    """A remote file system whose store keeps what it was given and loses its reply."""

    def __init__(self, *, keep=True):
        self.objects, self.failures, self.keep = {}, 1, keep

    def pipe_file(self, path, data, mode="overwrite"):
        if mode == "create" and path in self.objects:
            raise FileExistsError(path)
        if self.failures:
            self.failures -= 1
            if self.keep:
                self.objects[path] = data
            raise ConnectionResetError("reset")
        self.objects[path] = data


@pytest.fixture
def remote(store, monkeypatch):
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: lambda state: 0.0)
    store.local = False
    store._fs = Flaky()
    return store


def test_a_lost_reply_comes_back_as_exists_for_the_caller_to_compare(remote):
    assert not remote.put_new("a", b"mine")
    assert list(remote._fs.objects.values()) == [b"mine"]


def test_a_lost_request_is_made_again(remote):
    remote._fs.keep = False
    assert remote.put_new("a", b"mine")


def test_a_store_that_stays_away_is_a_storage_error(remote, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_DEADLINE", 0)
    monkeypatch.setattr(retry, "DEADLINE", 0)
    remote._fs.failures, remote._fs.keep = 1000, False
    with pytest.raises(StorageError, match="reset"):
        remote.put_new("a", b"mine")


def test_drafts_of_the_dead_are_swept_and_those_at_work_are_not(tmp_path):
    store = Store(str(tmp_path))
    assert store.sweep() == 0
    with store._draft(b"dead") as one, store._draft(b"live") as other:
        dead, live = Path(one.name), Path(other.name)
        os.utime(dead, (0, dead.stat().st_mtime - ABANDONED_S - 1))
        assert store.sweep() == 1
        assert (dead.exists(), live.exists()) == (False, True)
        assert list((tmp_path / "tmp").iterdir()) == [live]


def test_objects_that_grow_may_be_read_by_whom_others_may_be(tmp_path):
    store = Store(str(tmp_path))
    store.put_new("whole", b"1")
    with store.growing("grown") as out:
        out.write(b"2")

    assert (tmp_path / "grown").read_bytes() == b"2"
    assert (tmp_path / "grown").stat().st_mode == (tmp_path / "whole").stat().st_mode
    assert not list((tmp_path / "tmp").iterdir())


def test_an_object_that_did_not_grow_to_its_end_leaves_nothing(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(KeyError), store.growing("grown"):
        raise KeyError

    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_what_can_be_made_again_may_be_taken_away(tmp_path):
    store = Store(str(tmp_path))
    store.put_new("a", b"1")

    store.remove("a")
    store.remove("a")

    assert not store.exists("a")
