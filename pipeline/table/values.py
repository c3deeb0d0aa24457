"""Values of segments as Parquet: rows keyed by (shard, index, segment), a row group for each window they belong to."""

import io
from collections.abc import Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.table.records import DAMAGE, parquet

KEY = ("shard", "index", "segment")
_KEY_FIELDS = [
    pa.field(name, type_, nullable=False)
    for name, type_ in zip(KEY, (pa.string(), pa.int64(), pa.int32()), strict=True)
]


def encode_values(windows: Sequence[Sequence[Mapping[str, Any]]], columns: Mapping[str, str]) -> bytes:
    """Encode the rows of windows as one file.

    columns: beside the key, each with Arrow's name of its type. Raises ValueError for values of another type.
    """
    values = [pa.field(name, pa.type_for_alias(type_)) for name, type_ in columns.items()]
    schema = pa.schema(_KEY_FIELDS + values)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=["shard"]) as file:
        for rows in windows:
            try:
                file.write_table(pa.Table.from_pylist(list(rows), schema=schema))  # of no rows: a group without rows
            except pa.ArrowException as error:
                raise ValueError(f"values that columns {', '.join(columns)} cannot hold: {error}") from error
    return buffer.getvalue()


def read_values(
    stream: IO[bytes], group: int, shard: str, columns: Sequence[str]
) -> dict[tuple[int, int], dict[str, Any]]:
    """The values of one window by (index, segment); only its row group is read.

    Raises ValueError where the file is damaged, lacks a column, or has another shard there.
    """
    try:
        with parquet(stream) as file:
            if lost := {*KEY, *columns} - set(file.schema_arrow.names):
                raise ValueError(f"no column {', '.join(sorted(lost))}")
            rows = file.read_row_group(group, [*KEY, *columns], use_threads=False).to_pylist()
    except DAMAGE as error:
        raise ValueError(f"no Parquet file, or a damaged one: {error}") from error
    if any(row["shard"] != shard for row in rows):
        raise ValueError(f"row group {group} holds values of another shard than {shard}")
    return {(row["index"], row["segment"]): {name: row[name] for name in columns} for row in rows}
