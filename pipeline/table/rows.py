"""Label records read again: as rows of some columns, under a condition, or whole as they were committed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffseg.types import Segment
from pipeline.records import LATER, LabelRecord
from pipeline.table.filter import Condition, columns_of, truth
from pipeline.table.plausible import Places, check_values
from pipeline.table.records import DAMAGE, KEPT, columns_in, metadata_of, parquet
from pipeline.table.window_metadata import WindowMetadata


def read_rows(
    stream: IO[bytes],
    columns: Sequence[str] | None = None,
    *,
    first: int = 0,
    rows: int | None = None,
    filter: Condition | None = None,
    check: Callable[[WindowMetadata], None] | None = None,
    places: Places | None = None,
    stored: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of a file of windows as dicts, in order.

    columns: only these (None: all of the file); those of LATER that it lacks are null. first, rows: a range of rows
    (rows None: to the end). filter: only rows for which it is true; a row group without any is skipped. check:
    raises ValueError for metadata that the file may not have. places: where rows may stand. stored: rows as they were
    committed; else the quality of single segments is null, as it is in rows committed now. Raises ValueError where it
    is damaged or of another window.
    """
    try:
        with parquet(stream) as file:
            if check is not None:
                check(metadata_of(file))
            names = columns_in(file)
            last = file.metadata.num_rows if rows is None else first + rows
            yield from _rows(file, names, list(columns or names), first, last, filter, stored, places)
    except DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error


def _rows(
    file: pq.ParquetFile,
    names: list[str],
    columns: list[str],
    first: int,
    last: int,
    filter: Condition | None,
    stored: bool,
    places: Places | None,
) -> Iterator[dict[str, Any]]:
    small = _to_read(columns_of(filter) - (set(LATER) - set(names)), stored) if filter else []
    absent = dict.fromkeys(set(LATER) & set(columns) - set(names))
    columns = [name for name in columns if name not in absent]
    needed = _to_read({*columns, *small}, stored)
    at = 0
    for group in range(file.num_row_groups):
        begin, at = at, at + file.metadata.row_group(group).num_rows
        if at <= first or begin >= last:
            continue
        if filter and small and not _filtered(_group(file, group, small, stored), filter).num_rows:
            continue
        for batch in file.iter_batches(256, row_groups=[group], columns=needed, use_threads=False):
            taken = batch.slice(max(0, first - begin), max(0, last - max(begin, first)))
            check_values(taken)
            if places:
                places.check(taken)
            table = _without_single_quality(pa.Table.from_batches([taken]), stored)
            begin += len(batch)
            found = _filtered(table, filter) if filter else table
            for row in found.select(columns).to_pylist():  # `maps_as_pydicts` takes eighteen times as long
                yield row | absent | ({"kept": dict(row["kept"])} if row.get("kept") else {})
            if begin >= last:
                break


def _group(file: pq.ParquetFile, group: int, columns: list[str], stored: bool) -> pa.Table:
    return _without_single_quality(file.read_row_group(group, columns, use_threads=False), stored)


def _to_read(columns: set[str], stored: bool) -> list[str]:
    columns = columns | {"status"} if {"width", "height"} & columns else columns
    return sorted(columns if stored or "quality" not in columns else {*columns, "num_segments"})


def _without_single_quality(table: pa.Table, stored: bool) -> pa.Table:
    """Set the quality of single segments to null; 0.1.0 gave them a high one, though it had told nothing apart."""
    if stored or "quality" not in table.column_names:
        return table
    single = table["num_segments"].to_numpy() == 1  # numpy: arrow takes 60 microseconds a call, however few rows
    if not single.any():
        return table
    quality = pc.if_else(pa.array(single), pa.scalar(None, pa.float32()), table["quality"])
    return table.set_column(table.column_names.index("quality"), "quality", quality)


def _filtered(table: pa.Table, condition: Condition) -> pa.Table:
    """The rows for which a condition is true."""
    if "kept" in columns_of(condition) - set(table.column_names):
        table = table.append_column("kept", pa.nulls(table.num_rows, KEPT))
    taken = truth(condition, table)
    if isinstance(taken, pa.Scalar):  # it reads no column
        return table if taken.as_py() else table.slice(0, 0)
    return table.filter(taken)


def read_records(stream: IO[bytes]) -> list[LabelRecord]:
    """Read the rows of a window's file as they were committed. Raises ValueError where the file is damaged."""
    try:
        return [as_record(row) for row in read_rows(stream, stored=True)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"damaged rows: {error}") from error


def as_record(row: dict[str, Any]) -> LabelRecord:
    """The record of a row that has all columns."""
    segments, _ = segments_in(row), row.pop("num_segments")
    return LabelRecord(**{**row, "segments": segments})


def segments_in(row: Mapping[str, Any]) -> tuple[Segment, ...]:
    """The segments of a row."""
    return tuple(Segment(**{**each, "box": tuple(each["box"])}) for each in row["segments"] or ())
