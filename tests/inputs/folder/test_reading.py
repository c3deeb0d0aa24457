"""Folders of images: samples are what was pinned, whatever comes to the folder, leaves it or changes in it later."""

import os
import threading
from dataclasses import replace

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import ConfigError
from pipeline.inputs.folder.file_list import File, files_of, name_of, pack
from pipeline.inputs.shards import pin
from pipeline.inputs.tasks import split
from pipeline.records import OK, Shard
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage import retry
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg


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
    monkeypatch.setattr(retry, "DEADLINE", 0.0)
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
    drive(ledger, LocalPool(lambda: Worker(ledger, FakeSegmenter(batch_size=3))), tasks, Counters())
    assert faults(finish(ledger)) == []
    assert len(keys(ledger)) == 41


def pinned(folder):
    """Names of the images of a folder, and what is said of the rest."""
    heard: list[str] = []
    [shard] = pin([str(folder)], note=heard.append)
    return [file.name for file in files_of(shard)], heard


def test_every_picture_is_a_row_and_every_other_file_is_counted_and_named(tmp_path):
    photos = ["a.jpg", "b.HEIC", "c.mpo", "d.jpg_large", "e.jxl", "f.CR2", "g.dng", "h.psd", "i.jfif", "sub/j.heif"]
    others = ["k.txt", "l.TXT", "m.mp4", "README", "n.parquet", "sub/o.json"]
    (tmp_path / "in/sub").mkdir(parents=True)
    for name in photos + others:
        (tmp_path / "in" / name).write_bytes(jpeg(3) if name[-3:] not in ("CR2", "dng") else b"II*\0" + bytes(99))
    names, heard = pinned(tmp_path / "in")
    assert names == sorted(photos)
    assert heard == [f"{tmp_path}/in/: 6 other files: 2 .txt, 1 without extension, 1 .mp4, 1 .parquet, 1 .json"]
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "in")]))
    assert faults(finish(ledger)) == []
    failed = {key: status for key, status in statuses(ledger) if status != OK}
    assert failed == {"f": "undecodable", "g": "undecodable"}, "a JPEG is one whatever its name; a preview is no photo"


def test_files_that_systems_leave_and_links_that_lead_nowhere_are_named(tmp_path):
    left = ("._0.jpg", ".DS_Store", "__MACOSX/._0.jpg", ".ipynb_checkpoints/0.png", "Thumbs.db", "@eaDir/0.jpg")
    for name in ("0.jpg", *left):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "1.jpg").symlink_to("gone.jpg")
    (tmp_path / "back").symlink_to(".")
    names, [said] = pinned(tmp_path)
    assert names == ["0.jpg"]
    assert said == (
        f"{tmp_path}/: 6 hidden or system files, such as .DS_Store; 1 broken link: 1.jpg; 1 circular link: back"
    )


def test_what_shows_labels_of_a_photo_beside_it_is_no_photo(tmp_path):
    photos = ["a.jpg", "b.HEIC", "p.1.jpg", "sub/a.png"]
    masks = ["a.mask.png", "a.label_map.png", "a.labels.png", "a.overlay.png", "b.depth.png", "p.1.seg0.png"]
    masks += ["sub/a.alpha.png", "z.labels.png"]  # of the last the photo is gone: no photo is named like it
    doubtful = ["a.png", "a_mask.png", "b-seg.png", "q.mask.png", "sub/a_depth.tif"]
    neither = ["a_1.jpg", "mask.png", "a.b.jpg", "mask_a.png", "depth/a.png"]
    for name in photos + masks + doubtful + neither:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    names, [said] = pinned(tmp_path)
    assert names == sorted(photos + doubtful + neither)
    assert said == (
        f"{tmp_path}/: 8 label images, such as a.label_map.png; "
        "5 possible masks, such as a.png, labelled like any photo"
    )


def test_an_export_is_no_folder_of_photos(tmp_path):
    for name in ("a.jpg", "voc/export.json", "voc/_SUCCESS", "voc/JPEGImages/a.jpg", "voc/SegmentationObject/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    names, [said] = pinned(tmp_path)
    assert (names, said) == (["a.jpg"], f"{tmp_path}/: 1 export: voc/")
    assert pinned(tmp_path / "voc/JPEGImages")[0] == ["a.jpg"]
    with pytest.raises(ConfigError, match="voc/: an export, where images may be label maps"):
        pinned(tmp_path / "voc")
    (tmp_path / "voc/_SUCCESS").unlink()  # an export of somebody else
    assert len(pinned(tmp_path)[0]) == 3


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.txt"], "a folder without images; 1 other file: 1 .txt; name its shards: .*/\\*.tar$"),
        (["part-0.parquet", "_SUCCESS"], "2 other files: .*; name its shards: .*/\\*.parquet$"),
        (["._a.jpg"], "a folder without images; 1 hidden or system file: ._a.jpg; name"),
        (["a.labels.png"], "a folder without images; 1 label image: a.labels.png; name"),
        ([], "a folder without images; name its shards: .*/\\*.tar$"),
    ],
)
def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ConfigError, match=said) as caught:
        pin([str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_photo_behind_a_link_is_pinned_by_what_it_holds(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/1").write_bytes(jpeg(1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").symlink_to("../store/1")
    (tmp_path / "photos/b").symlink_to("../store")
    (tmp_path / "store/2.jpg").write_bytes(jpeg(2))
    ledger = start(tmp_path / "photos")
    (tmp_path / "store/1").write_bytes(jpeg(70))
    os.utime(tmp_path / "store/1", (1, 1))
    assert faults(finish(ledger)) == []
    assert statuses(ledger) == [("a", "changed"), ("b/2", OK)]
