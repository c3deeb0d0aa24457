"""Folders of images: samples are what was pinned, whatever comes to the folder, leaves it or changes in it later."""

import os
import threading
from dataclasses import replace

import pytest
from conftest import a_run, jpeg

from pipeline import retrying
from pipeline.audit import audit
from pipeline.driver import drive
from pipeline.errors import ConfigError
from pipeline.faults import FakeSegmenter
from pipeline.filelists import File, files_of, name_of, pack
from pipeline.ledger import Ledger
from pipeline.pool import LocalPool
from pipeline.records import OK, Shard
from pipeline.shards import pin
from pipeline.splitting import split
from pipeline.tally import Tally
from pipeline.worker import Worker


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        put(tmp_path / "photos", number)
    return tmp_path / "photos"


def put(folder, number, shade=None):
    path = folder / str(number % 2) / f"{number:02d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number if shade is None else shade))
    return path


def start(folder, *, extend=False):
    return Ledger.start(str(folder.parent / "run"), a_run(), pin([str(folder)]), extend=extend)


def finish(ledger):
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.unfinished()))
    return list(audit(Ledger.open(ledger.store.url), full=True))


def keys(ledger):
    return {(row["shard"], row["index"]): row["key"] for row in ledger.rows(["shard", "index", "key"])}


def statuses(ledger):
    return [(row["key"], row["status"]) for row in ledger.rows(["shard", "index", "key", "status"])]


def faults(checked):
    return [fault for shard in checked for fault in shard.faults]


def test_a_list_of_files_comes_back_as_it_was_whatever_their_names():
    files = [File("a\nb.jpg", 1, "x"), File('d/"é".png', 1 << 40, "1.5"), File("z.jpg", 0, "")]
    packed = pack(files)
    assert list(files_of(Shard("s", "/f/", 0, "e", files=packed.data))) == files
    assert packed.size == (1 << 40) + 1
    assert packed == pack(files)
    assert packed.digest != pack(files[:2]).digest


def test_a_folder_is_pinned_with_its_files(folder):
    ledger = start(folder)
    [shard] = Ledger.open(ledger.store.url).shards.values()
    assert [file.name for file in files_of(shard)] == [f"{n % 2}/{n:02d}.jpg" for n in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    assert [name for name, _ in ledger.store.list("inputs/")] == ["inputs/0.parquet", name_of(shard)]


def test_a_file_that_comes_later_is_not_of_this_run_and_said(folder):
    ledger = start(folder)
    list(Worker(ledger, FakeSegmenter()).run([replace(next(ledger.unfinished()), last_window=0)]))
    (folder / "0/00a.jpg").write_bytes(jpeg(50))  # second in order of name
    again = start(folder)
    assert again.notes == (f"file://{folder}/: files came to it since it was pinned; --extend adds them",)
    assert faults(finish(again)) == []
    assert list(keys(again).values()) == [f"{n % 2}/{n:02d}" for n in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]


def test_extend_adds_the_files_that_came_as_a_shard_of_their_own(folder):
    finish(start(folder))
    (folder / "0/00a.jpg").write_bytes(jpeg(50))
    finish(start(folder, extend=True))
    put(folder, 11)
    put(folder, 12)
    last = start(folder, extend=True)
    assert faults(finish(last)) == []
    assert [shard.url for shard in last.shards.values()] == [f"file://{folder}/"] * 3
    assert len(set(keys(last).values())) == len(keys(last)) == 13
    again = start(folder, extend=True)
    assert (len(again.shards), again.notes, list(again.unfinished())) == (3, (), [])


def test_drivers_that_extend_a_folder_at_once_add_each_file_once(folder):
    start(folder)
    for number in range(10, 20):
        put(folder, number)
    threads = [threading.Thread(target=lambda: start(folder, extend=True)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger.open(str(folder.parent / "run"))
    assert len(ledger.shards) == 2
    assert faults(finish(ledger)) == []
    assert len(keys(ledger)) == 20


def test_a_file_that_changed_is_refused_when_a_driver_joins(folder):
    start(folder)
    put(folder, 3, shade=90)
    with pytest.raises(ConfigError, match=r"1/03\.jpg: not the file this run began with \(1 such\)"):
        start(folder)


def test_a_file_that_is_gone_has_a_row_that_says_so_and_no_index_moves(folder):
    finish(start(folder))
    whole = keys(Ledger.open(str(folder.parent / "run")))
    for path in (folder.parent / "run" / "labels").glob("*"):
        path.unlink()
    (folder / "0/04.jpg").unlink()
    again = start(folder)
    assert again.notes == (f"file://{folder}/: 0/04.jpg is gone since it was pinned (1 such); its row will say so",)
    assert faults(finish(again)) == []
    assert keys(again) == whole
    assert [key for key, status in statuses(again) if status == "changed"] == ["0/04"]


def test_files_that_change_while_a_run_is_at_work_have_rows_that_say_so(folder, monkeypatch):
    monkeypatch.setattr(retrying, "DEADLINE", 0.0)
    ledger = start(folder)
    put(folder, 1, shade=90)  # another content
    put(folder, 3).write_bytes(b"short")
    os.utime(folder / "1/05.jpg", (1, 1))  # who knows what it holds now
    (folder / "1/07.jpg").unlink()
    assert faults(finish(ledger)) == []
    rows = list(ledger.rows())
    assert [row["key"] for row in rows if row["status"] != OK] == ["1/01", "1/03", "1/05", "1/07"]
    assert {row["status"] for row in rows} == {OK, "changed"}
    assert "gone since the run began" in rows[-2]["error"]


def test_a_list_that_is_gone_or_damaged_is_told_in_one_line(folder):
    ledger = start(folder)
    [shard] = ledger.shards.values()
    for damage in (b"garbage", ledger.store.get(name_of(shard))[:-9], None):
        path = folder.parent / "run" / name_of(shard)
        path.write_bytes(damage) if damage else path.unlink()
        with pytest.raises(ConfigError, match="list of") as caught:
            list(files_of(shard))
        assert "\n" not in str(caught.value)


def test_a_folder_is_shared_by_workers_that_would_be_idle(folder):
    for number in range(10, 41):
        put(folder, number)
    ledger = start(folder)
    tasks = list(split(ledger.unfinished(), 3, ledger.run.window))
    assert len(tasks) == 3
    drive(ledger, LocalPool(lambda: Worker(ledger, FakeSegmenter(batch_size=3))), tasks, Tally())
    assert faults(finish(ledger)) == []
    assert len(keys(ledger)) == 41
