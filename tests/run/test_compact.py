"""compact: the same rows from fewer objects, whatever happened on the way."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pyarrow.parquet as pq
import pytest

from jobs.shared import cli
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError
from pipeline.exports.export import export
from pipeline.messages import ShardTask
from pipeline.run.compact import compact
from pipeline.run.compacted import CompactedIndex, read_compacted
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage.object_store import Store
from pipeline.table import concat
from tests.support.labelled import label_map, make_run, record
from tests.support.processes import servers

KEYS = tuple(tuple(f"{shard}{i}" for i in range(10)) for shard in "abc")  # three windows a shard


@pytest.fixture
def ledger(tmp_path):
    return make_run(tmp_path, KEYS)


def small(ledger: Ledger) -> int:
    """A target that gives files of two windows."""
    return 2 * min(window.size for window in ledger.windows())


def again(ledger: Ledger) -> Ledger:
    return Ledger.open(ledger.store.url)


def files(ledger: Ledger) -> list[tuple[str, list[tuple[int, int]]]]:
    return [(file.name, [(h.window, h.generation) for h in file.windows]) for file in read_compacted(ledger.store)]


def objects_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that a reader of all rows opens."""
    names: list[str] = []
    fresh = again(ledger)
    reader = Store.reader

    def named(self, name, size=None):
        names.append(name)
        return reader(self, name, size)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "reader", named)
        list(fresh.rows())
    return names


def retry(ledger: Ledger, window: int, generation: int = 1) -> None:
    """A window of the first shard labelled again: every key gains a mark."""
    shard = next(iter(ledger.shards.values()))
    indices = range(4 * window, min(10, 4 * window + 4))
    rows = [record(f"again{i}", shard.id, i, label_map(i)) for i in indices]
    ledger.writer.commit(ShardTask(shard, window, window, generation), window, rows, 0, 0.0)


def test_rows_are_the_same_and_every_reader_takes_them_from_the_large_files(ledger, monkeypatch):
    before = list(again(ledger).rows())

    done = compact(ledger, target=small(ledger))

    assert (done.written, done.windows, done.removed) == (5, 9, 0)
    assert list(again(ledger).rows()) == before
    assert {name.split("/")[0] for name in objects_read(ledger, monkeypatch)} == {"compacted"}
    assert len(list(ledger.windows())) == 9, "windows stay"
    assert not any(checked.faults for checked in audit(again(ledger), full=True))


def test_rows_of_one_segment_that_have_a_quality_are_kept_as_they_are_and_read_without(tmp_path):
    """As 0.1.0 wrote them."""
    ledger = make_run(tmp_path, labels=lambda number: label_map(number, 1 + number % 2))
    before = list(ledger.rows())
    assert [row["quality"] is None for row in before] == [row["num_segments"] == 1 for row in before]

    compact(ledger)

    assert list(again(ledger).rows()) == before
    assert not any(checked.faults for checked in audit(again(ledger), full=True))


def test_some_columns_and_some_windows_come_from_the_large_files_too(ledger):
    compact(ledger)
    windows = list(ledger.windows())

    rows = list(again(ledger).rows(["key"], windows=[windows[1], windows[2], windows[5]]))

    assert [row["key"] for row in rows] == [*KEYS[0][4:], *KEYS[1][8:]]
    assert {tuple(row) for row in rows} == {("key",)}


def test_windows_that_follow_each_other_are_one_read(ledger):
    compact(ledger)
    windows = list(ledger.windows())

    places = CompactedIndex(read_compacted(ledger.store))

    assert [(part.first, part.rows) for part in places.ranges(windows)] == [(0, 30)]
    assert [(p.first, p.rows) for p in places.ranges([windows[0], windows[1], windows[8]])] == [(0, 8), (28, 2)]


def test_the_same_again_has_nothing_to_do(ledger):
    compact(ledger, target=small(ledger))
    before = files(ledger)

    done = compact(again(ledger), target=small(ledger))

    assert (done.written, done.removed, done.files) == (0, 0, 5)
    assert files(ledger) == before


@pytest.mark.parametrize("stop_after", range(5))
def test_stopped_between_two_files_it_goes_on(ledger, tmp_path, stop_after):
    whole = make_run(tmp_path / "whole", KEYS)
    compact(whole, target=small(ledger))

    def stop(state):
        if state.written == stop_after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(ledger, target=small(ledger), tick=stop)
    assert len(files(ledger)) == stop_after + 1
    done = compact(again(ledger), target=small(ledger))

    assert (done.written, done.files) == (4 - stop_after, 5)
    assert [windows for _, windows in files(ledger)] == [windows for _, windows in files(whole)]


KILLED = """
import os, sys
from pipeline.storage.object_store import Store
from pipeline.run.compact import compact
from pipeline.run.ledger import Ledger
calls = 0
def deadly(method):
    def call(self, *arguments):
        global calls
        calls += 1
        if calls == int(sys.argv[3]) and sys.argv[4] == "before":
            os._exit(9)
        result = method(self, *arguments)
        if calls == int(sys.argv[3]):
            os._exit(9)
        return result
    return call
Store._link = deadly(Store._link)
Store.remove = deadly(Store.remove)
compact(Ledger.open(sys.argv[1]), target=int(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_object_nothing_is_lost_or_twice(tmp_path, moment):
    """The run has outdated files, so that its killed compaction both writes and removes."""
    ledger = make_run(tmp_path, KEYS)
    target = small(ledger)
    compact(ledger, target=target)
    retry(ledger, 1)
    retry(ledger, 2)
    expected = list(again(ledger).rows())
    deaths = 0
    for number in range(1, 9):
        code = subprocess.run(
            [
                sys.executable,
                "-c",
                KILLED,
                ledger.store.url,
                str(target),
                "1" if moment == "after" else str(number),
                moment,
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        ).returncode
        assert list(again(ledger).rows()) == expected
        assert code in (0, 9)
        deaths += code == 9
        if code == 0:
            break
    assert code == 0
    assert deaths >= 2
    held = [(h.shard, h.window, h.generation) for file in read_compacted(ledger.store) for h in file.windows]
    assert sorted(held) == sorted((w.shard, w.window, w.revision) for w in ledger.windows())


def test_a_window_that_was_retried_after_compaction_wins(ledger):
    compact(ledger, target=small(ledger))
    retry(ledger, 1)

    keys = [row["key"] for row in again(ledger).rows(["key"])]

    assert keys == [*KEYS[0][:4], "again4", "again5", "again6", "again7", *KEYS[0][8:], *KEYS[1], *KEYS[2]]


def test_outdated_files_are_replaced_so_that_those_who_read_the_folder_see_every_sample_once(ledger):
    compact(ledger, target=small(ledger))
    retry(ledger, 1)
    retry(ledger, 1, generation=2)
    expected = list(again(ledger).rows())

    done = compact(again(ledger), target=small(ledger))

    assert done.removed >= 1
    tables = [pq.read_table(Path(str(ledger)) / name).to_pylist() for name, _ in files(ledger)]
    assert sorted((row for rows in tables for row in rows), key=lambda row: (row["shard"], row["index"])) == expected


def test_windows_that_came_later_join_the_small_file_at_the_end(tmp_path):
    ledger = make_run(tmp_path, KEYS, leave_out=(1,))
    compact(ledger)
    [shard] = [shard for shard in ledger.shards.values() if shard.url.endswith("s-2.tar")]
    rows = [record(KEYS[2][i], shard.id, i, label_map(200 + i)) for i in range(4, 8)]
    ledger.writer.commit(ShardTask(shard), 1, rows, 0, 0.0)

    done = compact(again(ledger))

    assert (done.files, done.written, done.removed) == (1, 1, 1)
    assert [row["key"] for row in again(ledger).rows(["key"])] == [key for keys in KEYS for key in keys]


def test_large_files_that_are_deleted_are_not_missed(ledger):
    before = list(again(ledger).rows())
    compact(ledger, target=small(ledger))
    for name, _ in files(ledger)[1:3]:
        (Path(str(ledger)) / name).unlink()

    assert list(again(ledger).rows()) == before
    assert compact(again(ledger), target=small(ledger)).written == 2


def test_what_is_no_compacted_file_is_passed_over_by_readers_and_named_by_compact(ledger):
    before = list(again(ledger).rows())
    compact(ledger)
    [(name, _)] = files(ledger)
    (Path(str(ledger)) / name).write_bytes(b"garbage")

    assert list(again(ledger).rows()) == before
    with pytest.raises(ConfigError, match="no compacted file of ours"):
        compact(again(ledger))


def test_verify_compares_the_copies_too(ledger):
    compact(ledger)
    [(name, _)] = files(ledger)
    path = Path(str(ledger)) / name
    table = pq.read_table(path)
    keys = ["stranger", *table["key"].to_pylist()[1:]]
    other = table.set_column(0, "key", [keys]).cast(pq.read_schema(path))
    held = pq.ParquetFile(path).metadata.metadata
    with pq.ParquetWriter(path, other.schema) as out:
        out.write_table(other)
        out.add_key_value_metadata({b"diffseg.windows": held[b"diffseg.windows"]})

    faults = [str(fault) for checked in audit(again(ledger), full=True) for fault in checked.faults]

    assert len(faults) == 1
    assert "its rows in compacted/ are others" in faults[0]


def test_a_damaged_window_is_named(ledger):
    name = list(ledger.windows())[4].name
    (Path(str(ledger)) / name).write_bytes(b"garbage")

    with pytest.raises(ConfigError, match=f"{name}.*verify --full"):
        compact(ledger)


def test_row_groups_stay_small_whatever_the_size_of_a_file(ledger, monkeypatch):
    monkeypatch.setattr(concat, "ROW_GROUP", 1)
    compact(ledger)

    [(name, _)] = files(ledger)
    with pq.ParquetFile(Path(str(ledger)) / name) as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [4, 4, 2] * 3
    assert [row["key"] for row in again(ledger).rows(["key"])] == [key for keys in KEYS for key in keys]


def test_exports_do_not_depend_on_compaction(ledger, tmp_path):
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    selection = Selection(where="quality > 0.15", split=0.5)
    export(again(ledger), str(tmp_path / "before"), "coco-segments", selection)
    compact(ledger, target=small(ledger))
    export(again(ledger), str(tmp_path / "after"), "coco-segments", selection)

    assert content(tmp_path / "after") == content(tmp_path / "before")


def test_the_command_says_what_it_did(tmp_path, capsys):
    make_run(tmp_path, KEYS)

    assert cli.run(["compact", str(tmp_path / "run")]) == 0
    assert "9 windows in 1 files" in capsys.readouterr().out
    assert cli.run(["compact", str(tmp_path / "run")]) == 0
    assert "nothing new" in capsys.readouterr().out


def test_a_run_without_a_window_has_nothing_to_compact(tmp_path):
    ledger = make_run(tmp_path, [["a"]], leave_out=(0,))

    with pytest.raises(ConfigError, match="nothing is committed yet"):
        compact(ledger)


def test_compaction_on_object_storage(s3, tmp_path):
    ledger = make_run(tmp_path, KEYS)
    far = copied(ledger)

    compact(far, target=small(ledger))
    retry(far, 1)
    done = compact(again(far), target=small(ledger))

    assert done.removed >= 1
    assert "again4" in [row["key"] for row in again(far).rows(["key"])]
    assert len([row for file in read_compacted(far.store) for row in file.windows]) == 9


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["a disk", "object storage"])
def test_reading_before_and_after(tmp_path, where, request, capsys):
    """2,000 windows of four rows: what is saved is the opening of objects."""
    ledger = make_run(tmp_path, [[f"{shard}-{i}" for i in range(400)] for shard in range(20)])
    if where == "object storage":
        request.getfixturevalue("s3")
        ledger = copied(ledger)

    def seconds(work: Callable[[Ledger], object]) -> float:
        began = perf_counter()
        work(again(ledger))
        return perf_counter() - began

    def read(run: Ledger) -> None:
        assert sum(1 for _ in run.rows()) == 8000

    before, took, after = seconds(read), seconds(compact), seconds(read)
    windows = len(list(ledger.windows()))
    said = f"{where}: 8,000 rows in {windows:,} windows: {before:.1f} s; compacting {took:.1f} s; then {after:.2f} s"
    with capsys.disabled():
        print(f"\n{said}", end="")  # noqa: T201


def copied(ledger: Ledger) -> Ledger:
    """The same run on a real S3 server."""
    place = Store(f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}")
    for name, _ in ledger.store.list(""):
        place.put_new(name, ledger.store.get(name))
    return Ledger.open(place.url)
