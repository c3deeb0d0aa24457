"""Label records read again: as rows of some columns, under a condition, or whole as they were committed."""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffseg.types import Segment
from pipeline.records import LATER, LabelRecord
from pipeline.table.filter import COMPARE, Among, Column, Comparison, Condition, Constant, Every, Not, Some, columns_of
from pipeline.table.plausible import check_values
from pipeline.table.records import DAMAGE, metadata_of, parquet
from pipeline.table.window_metadata import WindowMetadata

_ALWAYS = {"key", "shard", "index", "status"}


def read_rows(
    stream: IO[bytes],
    columns: Sequence[str] | None = None,
    *,
    first: int = 0,
    rows: int | None = None,
    filter: Condition | None = None,
    check: Callable[[WindowMetadata], None] | None = None,
    stored: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of a file of windows as dicts, in order.

    columns: only these (None: all of the file); those of LATER that it lacks are null. first, rows: a range of rows
    (rows None: to the end). filter: only rows for which it is true; a row group without any is skipped. check:
    raises ValueError for metadata that the file may not have. stored: rows as they were committed; else the quality of
    single segments is null, as it is in rows committed now. Raises ValueError where it is
    damaged or of another window.
    """
    try:
        with parquet(stream) as file:
            if check is not None:
                check(metadata_of(file))
            if lost := _ALWAYS - set(file.schema_arrow.names):
                raise ValueError(f"no column {', '.join(sorted(lost))}")
            last = file.metadata.num_rows if rows is None else first + rows
            yield from _rows(file, list(columns or file.schema_arrow.names), first, last, filter, stored)
    except DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error


def _rows(
    file: pq.ParquetFile, columns: list[str], first: int, last: int, filter: Condition | None, stored: bool
) -> Iterator[dict[str, Any]]:
    small = _to_read(columns_of(filter), stored) if filter else []
    absent = dict.fromkeys(set(LATER) & set(columns) - set(file.schema_arrow.names))
    columns = [name for name in columns if name not in absent]
    needed = _to_read({*columns, *small}, stored)
    wanted = _expression(filter) if filter else None
    at = 0
    for group in range(file.num_row_groups):
        begin, at = at, at + file.metadata.row_group(group).num_rows
        if at <= first or begin >= last:
            continue
        if wanted is not None and small and not _filtered(_group(file, group, small, stored), wanted).num_rows:
            continue
        for batch in file.iter_batches(256, row_groups=[group], columns=needed, use_threads=False):
            table = _without_single_quality(pa.Table.from_batches([batch]), stored)
            taken = table.slice(max(0, first - begin), max(0, last - max(begin, first)))
            check_values(taken)
            begin += len(batch)
            found = taken if wanted is None else _filtered(taken, wanted)
            yield from (row | absent for row in found.select(columns).to_pylist())
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
    single = pc.equal(table["num_segments"], 1)
    quality = pc.if_else(single, pa.scalar(None, pa.float32()), table["quality"])
    return table.set_column(table.column_names.index("quality"), "quality", quality)


def _filtered(table: pa.Table, wanted: pc.Expression) -> pa.Table:
    """The rows for which a condition is true, filtered in the calling thread."""
    from pyarrow import acero  # slow to import, and few readers filter

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    kept = acero.Declaration("filter", acero.FilterNodeOptions(wanted), [source])
    return kept.to_table(use_threads=False)


def _expression(condition: Condition) -> pc.Expression:
    """A condition as pyarrow's expression; a comparison with null is null, as in SQL."""
    match condition:
        case Comparison(sign, left, right):
            return COMPARE[sign](_operand(left), _operand(right))
        case Among(value, possible):  # is_in says no where a value is missing
            operand = _operand(value)
            return pc.if_else(operand.is_valid(), operand.isin(list(possible)), pa.scalar(None, pa.bool_()))
        case Not(part):
            return ~_expression(part)
        case Every(parts):
            return reduce(operator.and_, map(_expression, parts))
        case Some(parts):
            return reduce(operator.or_, map(_expression, parts))


def _operand(value: Column | Constant) -> pc.Expression:
    return pc.field(value.name) if isinstance(value, Column) else pc.scalar(value.value)


def read_records(stream: IO[bytes]) -> list[LabelRecord]:
    """Read the rows of a window's file as they were committed. Raises ValueError where the file is damaged."""
    try:
        return [as_record(row) for row in read_rows(stream, stored=True)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"damaged rows: {error}") from error


def as_record(row: dict[str, Any]) -> LabelRecord:
    """The record of a row that has all columns."""
    segments = tuple(Segment(**{**s, "box": tuple(s["box"])}) for s in row.pop("segments") or ())
    row.pop("num_segments")
    return LabelRecord(**row, segments=segments)
