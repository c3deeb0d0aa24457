"""Label records as Parquet: one row per input sample, and metadata that say what the rows were made from.

Columns added later are nullable, so that old runs stay readable. `images` reads Parquet with images in it.
"""

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import documents
from pipeline.records import LATER, OK, LabelRecord, Shard
from pipeline.table.window_metadata import WindowMetadata, columns_without_value, fields_of

METADATA_KEY = b"diffseg"

SHARDS_AT_ONCE = 512  # pinned shards in memory as Python objects
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
KEPT = pa.map_(pa.string(), pa.string())  # a field of the sample's own JSON, and its value
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


def encode_window(records: Sequence[LabelRecord], metadata: WindowMetadata) -> bytes:
    """Encode a whole window as one Parquet file.

    Raises ValueError where the rows are not of one shard with consecutive indices.
    """
    indices = [record.index for record in records]
    if indices != list(range(metadata.first_index, metadata.first_index + metadata.rows)):
        raise ValueError(f"window {metadata.window} of {metadata.shard}: indices are not consecutive: {indices[:5]}...")
    if {record.shard for record in records} != {metadata.shard}:
        raise ValueError(f"window {metadata.window} of {metadata.shard} holds rows of another shard")
    schema = schema_with(set(LATER) - columns_without_value(records))
    columns = {field.name: [_cell(record, field.name) for record in records] for field in schema}
    return _encode(pa.table(columns, schema=schema), {METADATA_KEY: documents.to_json(metadata)})


def schema_with(later: Collection[str]) -> pa.Schema:
    """The columns of 0.1.0 and those of LATER that are named."""
    return pa.schema(
        [*SCHEMA, *(pa.field(name, KEPT if name == "kept" else pa.binary()) for name in LATER if name in later)]
    )


def _cell(record: LabelRecord, name: str) -> Any:
    if name != "segments":
        return getattr(record, name)
    return [fields_of(segment) for segment in record.segments] if record.status == OK else None


def _encode(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, **settings(table.column_names))
    return buffer.getvalue()


def settings(columns: Sequence[str]) -> dict[str, Any]:
    """The options with which pyarrow writes these columns."""
    plain = {"label_map", "leaf_map"} & set(columns)  # neither shrinks further
    return {
        "compression": {name: "none" if name in plain else "zstd" for name in columns},
        "use_dictionary": [name for name in ("shard", "status") if name in columns],
        "write_statistics": [name for name in columns if name not in ("label_map", *LATER)],
    }


def parquet(stream: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file to read it in the calling thread: pass `use_threads=False` to whatever reads columns.

    Arrow's own threads release Python objects, this stream and its bytes, some time after they have answered. Where the
    interpreter ends before that, they abort the process (exit code 134).
    """
    return pq.ParquetFile(stream, pre_buffer=False)


def read_window_metadata(stream: IO[bytes]) -> WindowMetadata:
    """Read the metadata of a window's file; only the file's end is read. Raises ValueError where it is no window."""
    try:
        with parquet(stream) as file:
            metadata = metadata_of(file)
            columns_in(file)
            return metadata
    except DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error


def check_columns(found: pa.Schema, wanted: pa.Schema) -> None:
    """Raises ValueError for a column that is missing, there twice, or of another type."""
    for field in wanted:
        if [found.field(at).type for at in found.get_all_field_indices(field.name)] != [field.type]:
            raise ValueError(f"no column {field.name} of type {str(field.type)[:40]}, or more than one")


def columns_in(file: pq.ParquetFile) -> list[str]:
    """The names of a file's columns. Raises ValueError where those of rows are not what they must be."""
    found = file.schema_arrow
    names = tuple(found.names)
    if not found.equals(wanted := _of(names)):  # most files: 300 times as fast as column by column
        check_columns(found, wanted)
    return list(names)


@lru_cache(64)
def _of(names: tuple[str, ...]) -> pa.Schema:
    return schema_with(names)


def metadata_of(file: pq.ParquetFile) -> WindowMetadata:
    """The metadata of a window's opened file. Raises ValueError where it is no window."""
    raw, rows = (file.metadata.metadata or {}).get(METADATA_KEY), file.metadata.num_rows
    if raw is None:
        raise ValueError("a Parquet file without our footer")
    try:
        metadata = documents.from_json(WindowMetadata, raw)
    except ValueError as error:
        raise ValueError(f"a footer that is not ours: {error}") from error
    if metadata.rows != rows:
        raise ValueError(f"the footer says {metadata.rows} rows, the file has {rows}")
    return metadata


def encode_shards(shards: Iterable[Shard]) -> bytes:
    """Encode pinned shards as Parquet."""
    rows = [{name: getattr(shard, name) for name in SHARD_SCHEMA.names} for shard in shards]
    return _encode(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), {})


def decode_shards(data: bytes) -> Iterator[Shard]:
    """Decode pinned shards, a batch in memory at a time. Raises ValueError where the data hold none."""
    try:
        file = parquet(io.BytesIO(data))
        check_columns(file.schema_arrow, SHARD_SCHEMA)
        for batch in file.iter_batches(SHARDS_AT_ONCE, use_threads=False):
            for row in batch.to_pylist():
                if row["size"] < 0 or any("\0" in row[name] for name in ("id", "url", "etag")):
                    raise ValueError(f"{row['id']} of {row['size']} bytes")
                yield Shard(**row, source=row["url"])
    except (*DAMAGE, TypeError, KeyError) as error:
        raise ValueError(f"no list of shards: {error}") from error
    finally:
        pa.default_memory_pool().release_unused()  # what was read once is not read again


def encode_rows(rows: Sequence[Mapping[str, Any]], note: bytes = b"") -> bytes:
    """Encode rows of plain values as Parquet; columns and types follow from the rows. note: in the file's metadata."""
    return _encode(pa.Table.from_pylist([dict(row) for row in rows]), {METADATA_KEY: note} if note else {})


def decode_rows(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Decode rows of plain values, and their note. Raises ValueError where the data are no Parquet file."""
    try:
        table = parquet(io.BytesIO(data)).read(use_threads=False)
        return table.to_pylist(), (table.schema.metadata or {}).get(METADATA_KEY, b"")
    except DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error
