"""Derived tables: created once, visible by their note, joined window by window, told when they are out of date."""

import json
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.derived import note as writing
from pipeline.derived.joined import DerivedTable
from pipeline.derived.note import Note, overview, read_note, revisions, write
from pipeline.errors import ConfigError
from pipeline.messages import ShardTask
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage.object_store import Store
from tests.support.labelled import WINDOW, label_map, make_run, record

KEYS = (tuple("abcdefghij"), tuple("klm"))  # windows of 4, 4, 2 and of 3 samples
SEGMENTS = ("shard", "index", "segments")
COLUMNS = {"predicted_iou": "float32", "number": "int64"}


def note() -> Note:
    return Note(command="diffseg calibrate RUN --name x", columns=COLUMNS, parameters={"fitted": "by hand"})


def values(ledger: Ledger) -> writing.Values:
    """A number for each segment that says whose it is; none for the segments of id 1."""

    def of(window: WindowObject) -> Iterator[dict[str, Any]]:
        for row in ledger.rows(SEGMENTS, windows=[window]):
            for one in row["segments"] or ():
                if one["id"] != 1:
                    number = 1000 * row["index"] + one["id"]
                    yield {"index": row["index"], "segment": one["id"], "predicted_iou": 0.5, "number": number}

    return of


def joined(ledger: Ledger, table: str = "x") -> dict[tuple[str, int, int], int | None]:
    rows = DerivedTable(ledger, table, list(COLUMNS)).join(ledger.rows(SEGMENTS))
    return {(row["shard"], row["index"], s["id"]): s["number"] for row in rows for s in row["segments"] or ()}


def labelled(ledger: Ledger, number: int, window: int, revision: int) -> Ledger:
    """The run after a window of one of its shards was committed."""
    shard = list(ledger.shards.values())[number]
    indices = range(WINDOW * window, min(WINDOW * (window + 1), len(KEYS[number])))
    rows = [record(KEYS[number][i], shard.id, i, label_map(i)) for i in indices]
    ledger.writer.commit(ShardTask(shard, window, window, revision), window, rows, 0, 0.0)
    return Ledger.open(str(ledger.store))


def test_values_are_joined_onto_their_segments_and_no_others(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS, failed={(0, 5): "undecodable"})
    write(ledger, "x", note(), values(ledger))
    found = joined(ledger)
    for (_, index, id_), number in found.items():
        assert number == (None if id_ == 1 else 1000 * index + id_)
    assert len(found) == 12 * 5


def test_any_windows_in_any_order_are_joined(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS)
    write(ledger, "x", note(), values(ledger))
    table = DerivedTable(ledger, "x", ["number"])
    for window in reversed(list(ledger.windows())):
        for row in table.join(ledger.rows(SEGMENTS, windows=[window])):
            assert row["segments"][2] | {"number": 1000 * row["index"] + 2} == row["segments"][2]
            assert "predicted_iou" not in row["segments"][2]


def test_a_table_is_written_once_and_again_as_its_next_revision(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS)
    before = {name: ledger.store.get(name) for name, _ in ledger.store.list("")}
    assert write(ledger, "x", note(), values(ledger))[1] == 1
    first = {name: ledger.store.get(name) for name, _ in ledger.store.list("derived/")}
    assert write(ledger, "x", note(), values(ledger))[1] == 2
    after = {name: ledger.store.get(name) for name, _ in ledger.store.list("")}
    assert after.items() >= (before | first).items()
    assert revisions(ledger) == {"x": 2}
    assert read_note(ledger, "x/1")[1] == 1


def test_a_writer_that_dies_before_its_note_leaves_nothing_visible(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = make_run(tmp_path, KEYS)
    monkeypatch.setattr(writing, "WINDOWS", 1)
    put = ledger.store.put_new

    def dying(name: str, data: bytes) -> bool:
        if name.endswith(("00002.parquet", "note.json")):
            raise KeyboardInterrupt
        return put(name, data)

    monkeypatch.setattr(ledger.store, "put_new", dying)
    with pytest.raises(KeyboardInterrupt):
        write(ledger, "x", note(), values(ledger))
    assert len(list(ledger.store.list("derived/"))) == 2
    with pytest.raises(ConfigError, match="no derived table 'x'"):
        DerivedTable(ledger, "x", ["number"])
    monkeypatch.undo()
    assert write(ledger, "x", note(), values(ledger))[1] == 1
    assert None not in {number for (*_, id_), number in joined(ledger).items() if id_ != 1}


def test_of_two_writers_at_once_the_first_note_counts_and_the_other_is_told(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS)

    def interrupted(window: WindowObject) -> Iterator[dict[str, Any]]:
        if not revisions(ledger):
            write(ledger, "x", note(), values(ledger))
        return iter(())

    with pytest.raises(ConfigError, match="another writer was first"):
        write(ledger, "x", note(), interrupted)
    assert set(joined(ledger).values()) - {None}
    assert revisions(ledger) == {"x": 1}


def test_a_note_whose_reply_was_lost_is_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = make_run(tmp_path, KEYS)
    put = ledger.store.put_new
    monkeypatch.setattr(ledger.store, "put_new", lambda name, data: put(name, data) and False)
    assert write(ledger, "x", note(), values(ledger))[1] == 1


def test_a_run_that_has_grown_is_told_and_only_what_is_missing_is_made(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS, leave_out=(0,))
    made, _ = write(ledger, "x", note(), values(ledger))
    assert DerivedTable(ledger, "x", ["number"]).outdated is None
    grown = labelled(labelled(ledger, 1, 0, 0), 0, 1, 1)
    table = DerivedTable(grown, "x", ["number"])
    told = table.outdated or ""
    assert told.endswith("was made from 2 of 4 windows: run `diffseg calibrate RUN --name x --extend`")
    assert overview(grown)["x/1"].startswith("2 of 4 windows")
    stale = {number for (shard, index, _), number in joined(grown).items() if 4 <= index < 8}
    assert stale == {None}
    asked: list[str] = []

    def counted(window: WindowObject) -> Iterable[Mapping[str, Any]]:
        asked.append(window.name)
        return values(grown)(window)

    extended, revision = write(grown, "x", made, counted)
    assert revision == 2
    assert len(asked) == 2
    assert extended.parts[: len(made.parts)] == made.parts
    assert write(grown, "x", extended, counted) == (extended, 2)
    assert len(asked) == 2
    assert DerivedTable(grown, "x", ["number"]).outdated is None
    assert None not in {number for (*_, id_), number in joined(grown).items() if id_ != 1}
    assert {number for (*_, id_), number in joined(grown, "x/1").items() if id_ != 1} >= {None}


@pytest.mark.parametrize(
    ("table", "columns", "line"),
    [
        ("y", ["number"], "no derived table 'y'; there are x"),
        ("X", ["number"], "a name has small letters"),
        ("../x", ["number"], "a name has small letters"),
        ("x/two", ["number"], "'x' has no revision 'two', the latest is 1"),
        ("x/7", ["number"], "'x' has no revision '7', the latest is 1"),
        ("x", ["category"], "has no column category, it has predicted_iou, number"),
    ],
)
def test_a_table_that_is_not_there_is_one_line(tmp_path: Path, table: str, columns: list[str], line: str) -> None:
    ledger = make_run(tmp_path, KEYS)
    write(ledger, "x", note(), values(ledger))
    with pytest.raises(ConfigError, match=line) as caught:
        DerivedTable(ledger, table, columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.unlink(), "is missing; make the table again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "no Parquet file, or a damaged one"),
        (lambda path: path.write_bytes(b""), "no Parquet file, or a damaged one"),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_one_line(tmp_path: Path, damage: Any, line: str) -> None:
    ledger = make_run(tmp_path, KEYS)
    write(ledger, "x", note(), values(ledger))
    [part] = (tmp_path / "run" / "derived").rglob("*.parquet")
    damage(part)
    with pytest.raises(ConfigError, match=line) as caught:
        joined(ledger)
    assert "\n" not in str(caught.value)


def test_values_of_another_type_and_notes_of_others_are_one_line(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS)
    with pytest.raises(ValueError, match="values that columns predicted_iou, number cannot hold"):
        write(ledger, "x", note(), lambda _: [{"index": 0, "segment": 0, "predicted_iou": "high", "number": 1}])
    ledger.store.put_new("derived/x/1/note.json", json.dumps({"command": 1}).encode())
    with pytest.raises(ConfigError, match="no note of ours"):
        read_note(ledger, "x")
    assert "no note of ours" in overview(ledger)["x/1"]


def test_a_run_with_derived_tables_is_complete_and_nothing_in_it_is_foreign(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, KEYS)
    write(ledger, "x", note(), values(ledger))
    faults = [str(fault) for shard in audit(ledger) for fault in shard.faults]
    assert not [fault for fault in faults if "derived" in fault or "no object" in fault]


def test_memory_holds_the_values_of_few_windows(tmp_path: Path) -> None:
    ledger = make_run(tmp_path, (tuple(f"{i:04}" for i in range(400)),))
    write(ledger, "x", note(), values(ledger))
    rows = DerivedTable(ledger, "x", ["number"]).join(ledger.rows(SEGMENTS))
    next(rows)
    tracemalloc.start()
    peaks = []
    for number, _ in enumerate(rows):
        if number % 100 == 99:
            peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(peaks) < 1.2 * peaks[0] + 100_000


@pytest.mark.usefixtures("s3")
def test_tables_live_on_object_storage_too(tmp_path: Path, place: str) -> None:
    local = make_run(tmp_path, KEYS)
    store = Store(place)
    for name, _ in local.store.list(""):
        store.put_new(name, local.store.get(name))
    ledger = Ledger.open(place)
    made, _ = write(ledger, "x", note(), values(ledger))
    assert write(ledger, "x", made, values(ledger)) == (made, 1)
    assert None not in {number for (*_, id_), number in joined(ledger).items() if id_ != 1}
