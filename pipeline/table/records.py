"""Label records as Parquet: one row per input sample, and a footer that says what the rows were made from.

Columns added later are nullable, so that old runs stay readable. Parquet with images in it is for `images`.
"""

import io
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffseg.types import Segment
from pipeline import documents
from pipeline.footer import Footer
from pipeline.records import OK, LabelRecord, Shard
from pipeline.where import Among, Column, Comparison, Condition, Constant, Every, Not, Some, columns_of

FOOTER_KEY = b"diffseg"

_ALWAYS = {"key", "shard", "index", "status"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
SHARDS_AT_ONCE = 512  # pinned inputs in memory as Python objects
DAMAGE = (pa.ArrowException, OSError, EOFError)  # what pyarrow raises on bytes that are no Parquet

_SEGMENT = pa.struct(
    [
        pa.field("id", pa.int32()),
        pa.field("area", pa.int64()),  # pixels of the label map
        pa.field("box", pa.list_(pa.int32(), 4)),  # x, y, width, height
        pa.field("score", pa.float32()),
        pa.field("category", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("label_map", pa.binary()),
        pa.field("num_segments", pa.int32()),
        pa.field("segments", pa.list_(_SEGMENT)),
        pa.field("quality", pa.float32()),
        pa.field("image_sha256", pa.string()),
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
    ]
)


def encode_window(records: Sequence[LabelRecord], footer: Footer) -> bytes:
    """A whole window as the bytes of one Parquet file.

    Raises ValueError where the rows are not one a sample with consecutive indices of one shard.
    """
    indices = [record.index for record in records]
    if indices != list(range(footer.first_index, footer.first_index + footer.rows)):
        raise ValueError(f"window {footer.window} of {footer.shard}: indices are not consecutive: {indices[:5]}...")
    if {record.shard for record in records} != {footer.shard}:
        raise ValueError(f"window {footer.window} of {footer.shard} holds rows of another shard")
    columns = {field.name: [_cell(record, field.name) for record in records] for field in SCHEMA}
    return _encode(pa.table(columns, schema=SCHEMA), {FOOTER_KEY: json.dumps(asdict(footer)).encode()})


def _cell(record: LabelRecord, name: str) -> Any:
    if name != "segments":
        return getattr(record, name)
    return [asdict(segment) for segment in record.segments] if record.status == OK else None


def _encode(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, **settings(table.column_names))
    return buffer.getvalue()


def settings(columns: Sequence[str]) -> dict[str, Any]:
    """How pyarrow is to write these columns."""
    plain = {"label_map"} & set(columns)  # PNG does not shrink further
    return {
        "compression": {name: "none" if name in plain else "zstd" for name in columns},
        "use_dictionary": [name for name in ("shard", "status") if name in columns],
        "write_statistics": [name for name in columns if name not in plain],
    }


def parquet(stream: IO[bytes]) -> pq.ParquetFile:
    """A Parquet file, read by the thread that asks for it: give `use_threads=False` to whatever reads columns.

    Arrow's own threads drop what they were lent of Python's, this stream and its bytes, some time after they have
    answered. Where the interpreter ends before that, they bring the process down with it (exit code 134).
    """
    return pq.ParquetFile(stream, pre_buffer=False)


def read_footer(stream: IO[bytes]) -> Footer:
    """The footer of a window's file; only the file's end is read.

    Raises ValueError where the file is no window.
    """
    try:
        with parquet(stream) as file:
            return _footer(file)
    except DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error


def _footer(file: pq.ParquetFile) -> Footer:
    raw, rows = (file.schema_arrow.metadata or {}).get(FOOTER_KEY), file.metadata.num_rows
    if raw is None:
        raise ValueError("a Parquet file without our footer")
    try:
        footer = documents.from_json(Footer, raw)
    except ValueError as error:
        raise ValueError(f"a footer that is not ours: {error}") from error
    if footer.rows != rows:
        raise ValueError(f"the footer says {footer.rows} rows, the file has {rows}")
    return footer


def read_rows(
    stream: IO[bytes],
    columns: Sequence[str] | None = None,
    *,
    first: int = 0,
    rows: int | None = None,
    where: Condition | None = None,
    window: tuple[str, int] | None = None,
    stored: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of a file of windows as dicts, in order. columns: only these (None: all).

    first, rows: which rows of the file (None: to its end). where: only rows that it is true of; where no row of a row
    group is, its other columns are not read. window: shard and number that the file must be of. stored: as they were
    committed; else one segment has no quality, as in rows that are committed now. Raises ValueError where the file is
    damaged or of another window.
    """
    try:
        with parquet(stream) as file:
            if window is not None:
                check_window(_footer(file), window)
            if lost := _ALWAYS - set(file.schema_arrow.names):
                raise ValueError(f"no column {', '.join(sorted(lost))}")
            last = file.metadata.num_rows if rows is None else first + rows
            yield from _rows(file, list(columns or file.schema_arrow.names), first, last, where, stored)
    except DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error


def check_window(footer: Footer, window: tuple[str, int]) -> None:
    """Raises ValueError where a file is of another window than the one whose name it has."""
    if (footer.shard, footer.window) != window:
        raise ValueError(f"holds window {footer.window} of {footer.shard}")


def _rows(
    file: pq.ParquetFile, columns: list[str], first: int, last: int, where: Condition | None, stored: bool
) -> Iterator[dict[str, Any]]:
    small = _to_read(columns_of(where), stored) if where else []
    needed = _to_read({*columns, *small}, stored)
    wanted = _expression(where) if where else None
    at = 0
    for group in range(file.num_row_groups):
        begin, at = at, at + file.metadata.row_group(group).num_rows
        if at <= first or begin >= last:
            continue
        if wanted is not None and small and not _filtered(_group(file, group, small, stored), wanted).num_rows:
            continue
        for batch in file.iter_batches(256, row_groups=[group], columns=needed, use_threads=False):
            table = _judged(pa.Table.from_batches([batch]), stored)
            taken = table.slice(max(0, first - begin), max(0, last - max(begin, first)))
            begin += len(batch)
            yield from (taken if wanted is None else _filtered(taken, wanted)).select(columns).to_pylist()
            if begin >= last:
                break


def _group(file: pq.ParquetFile, group: int, columns: list[str], stored: bool) -> pa.Table:
    return _judged(file.read_row_group(group, columns, use_threads=False), stored)


def _to_read(columns: set[str], stored: bool) -> list[str]:
    return sorted(columns if stored or "quality" not in columns else {*columns, "num_segments"})


def _judged(table: pa.Table, stored: bool) -> pa.Table:
    """One segment has no quality: 0.1.0 gave it one, and a high one, though nothing was told apart."""
    if stored or "quality" not in table.column_names:
        return table
    single = pc.equal(table["num_segments"], 1)
    quality = pc.if_else(single, pa.scalar(None, pa.float32()), table["quality"])
    return table.set_column(table.column_names.index("quality"), "quality", quality)


def _filtered(table: pa.Table, wanted: pc.Expression) -> pa.Table:
    """The rows that it is true of; by this thread too."""
    from pyarrow import acero  # slow to import, and hardly anybody filters

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    kept = acero.Declaration("filter", acero.FilterNodeOptions(wanted), [source])
    return kept.to_table(use_threads=False)


def categories(stream: IO[bytes]) -> set[str]:
    """Every category that a segment of a file has. Raises ValueError where the file is damaged."""
    found = set[str]()
    try:
        with parquet(stream) as file:
            for batch in file.iter_batches(columns=["segments.list.element.category"], use_threads=False):
                found.update(pc.struct_field(pc.list_flatten(batch["segments"]), "category").unique().to_pylist())
    except DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error
    return found - {None}


def _expression(condition: Condition) -> pc.Expression:
    """A condition as pyarrow has it; what is unknown stays unknown, as in SQL."""
    match condition:
        case Comparison(sign, left, right):
            return _COMPARE[sign](_operand(left), _operand(right))
        case Among(value, possible):  # is_in says no where a value is missing
            one = _operand(value)
            return pc.if_else(one.is_valid(), one.isin(list(possible)), pa.scalar(None, pa.bool_()))
        case Not(part):
            return ~_expression(part)
        case Every(parts):
            return reduce(operator.and_, map(_expression, parts))
        case Some(parts):
            return reduce(operator.or_, map(_expression, parts))


def _operand(value: Column | Constant) -> pc.Expression:
    return pc.field(value.name) if isinstance(value, Column) else pc.scalar(value.value)


def read_records(stream: IO[bytes]) -> list[LabelRecord]:
    """The rows of a window's file as they were committed. Raises ValueError where the file is damaged."""
    try:
        return [as_record(row) for row in read_rows(stream, stored=True)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"damaged rows: {error}") from error


def as_record(row: dict[str, Any]) -> LabelRecord:
    """A row of all columns as it was committed."""
    segments = tuple(Segment(**{**s, "box": tuple(s["box"])}) for s in row.pop("segments") or ())
    row.pop("num_segments")
    return LabelRecord(**row, segments=segments)


def encode_shards(shards: Iterable[Shard]) -> bytes:
    """Pinned inputs as Parquet."""
    rows = [{name: getattr(shard, name) for name in SHARD_SCHEMA.names} for shard in shards]
    return _encode(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), {})


def decode_shards(data: bytes) -> Iterator[Shard]:
    """The inverse of `encode_shards`, a batch in memory at a time. Raises ValueError for what is none."""
    try:
        for batch in parquet(io.BytesIO(data)).iter_batches(SHARDS_AT_ONCE, use_threads=False):
            yield from (Shard(**row, source=row["url"]) for row in batch.to_pylist())
    except (*DAMAGE, TypeError, KeyError) as error:
        raise ValueError(f"no list of shards: {error}") from error
    finally:
        pa.default_memory_pool().release_unused()  # what was read once is not read again


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Any table of plain values as Parquet, its columns and types taken from the rows."""
    return _encode(pa.Table.from_pylist([dict(row) for row in rows]), {})


def decode_rows(data: bytes) -> list[dict[str, Any]]:
    """The inverse of `encode_rows`. Raises ValueError for what is no Parquet file."""
    try:
        rows: list[dict[str, Any]] = parquet(io.BytesIO(data)).read(use_threads=False).to_pylist()
    except DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error
    return rows
