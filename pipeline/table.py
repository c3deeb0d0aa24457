"""Label records as Parquet: one row per input sample, and a footer that says what the rows were made from.

The only file that knows pyarrow. Columns added later are nullable, so that old runs stay readable.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import PurePosixPath
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from diffseg.types import Segment
from pipeline.errors import ConfigError, CorruptShard
from pipeline.footer import Footer
from pipeline.records import OK, LabelRecord, RawSample, Shard

FOOTER_KEY = b"diffseg"

Row: TypeAlias = Mapping[str, Any]
_DAMAGE = (pa.ArrowException, OSError, EOFError)  # what pyarrow raises on bytes that are no Parquet

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
    plain = {"label_map"} & set(table.column_names)  # PNG does not shrink further
    compression = {name: "none" if name in plain else "zstd" for name in table.column_names}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression=compression,
        use_dictionary=[name for name in ("shard", "status") if name in table.column_names],
        write_statistics=[name for name in table.column_names if name not in plain],
    )
    return buffer.getvalue()


def read_footer(stream: IO[bytes]) -> Footer:
    """The footer of a window's file; only the file's end is read.

    Raises ValueError where the file is no window.
    """
    try:
        with pq.ParquetFile(stream) as file:
            raw = (file.schema_arrow.metadata or {}).get(FOOTER_KEY)
            rows = file.metadata.num_rows
    except _DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error
    if raw is None:
        raise ValueError("a Parquet file without our footer")
    said = json.loads(raw)
    known = {field.name for field in fields(Footer)}
    try:
        footer = Footer(**{name: value for name, value in said.items() if name in known})
    except TypeError as error:
        raise ValueError(f"a footer that is not ours: {error}") from error
    if footer.rows != rows:
        raise ValueError(f"the footer says {footer.rows} rows, the file has {rows}")
    return footer


def read_rows(stream: IO[bytes], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a window's file as dicts, in order of index. columns: only these (None: all).

    Raises ValueError where the file is damaged.
    """
    try:
        yield from _rows(stream, columns)
    except _DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error


def _rows(stream: IO[bytes], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(stream) as file:
        lost = {"key", "shard", "index", "status"} - set(file.schema_arrow.names)
        if lost:
            raise ValueError(f"no column {', '.join(sorted(lost))}")
        for batch in file.iter_batches(batch_size=256, columns=None if columns is None else list(columns)):
            yield from batch.to_pylist()


def read_records(stream: IO[bytes]) -> list[LabelRecord]:
    """The rows of a window's file as they were committed. Raises ValueError where the file is damaged."""
    try:
        return [_record(row) for row in read_rows(stream)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"damaged rows: {error}") from error


def _record(row: dict[str, Any]) -> LabelRecord:
    segments = tuple(Segment(**{**s, "box": tuple(s["box"])}) for s in row.pop("segments") or ())
    row.pop("num_segments")
    return LabelRecord(**row, segments=segments)


def encode_shards(shards: Iterable[Shard]) -> bytes:
    """Pinned inputs as Parquet."""
    rows = [{name: getattr(shard, name) for name in SHARD_SCHEMA.names} for shard in shards]
    return _encode(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), {})


def decode_shards(data: bytes) -> list[Shard]:
    """The inverse of `encode_shards`. Raises ValueError for what is none."""
    try:
        return [Shard(**row, source=row["url"]) for row in decode_rows(data)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"no list of shards: {error}") from error


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Any table of plain values as Parquet, its columns and types taken from the rows."""
    return _encode(pa.Table.from_pylist([dict(row) for row in rows]), {})


def decode_rows(data: bytes) -> list[dict[str, Any]]:
    """The inverse of `encode_rows`. Raises ValueError for what is no Parquet file."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    except _DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error
    return rows


@contextmanager
def writing_features(out: IO[bytes], features: Mapping[str, Any], group: int) -> Iterator[Callable[[Row], None]]:
    """Rows written to a Parquet file as they come, `group` of them at a time.

    features: the columns as Hugging Face's datasets describes them; they give the types and are kept in the file.
    """
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([(name, _type_of(feature)) for name, feature in features.items()], metadata=said)
    rows: list[Row] = []
    plain = [name for name, feature in features.items() if feature == {"_type": "Image"}]  # PNG and JPEG do not shrink
    compression = {name: "none" if name.split(".")[0] in plain else "zstd" for name in _leaves(schema)}
    with pq.ParquetWriter(out, schema, compression=compression, use_dictionary=False) as file:

        def flush() -> None:
            file.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) == group:
                flush()

        yield write
        if rows:
            flush()


def _type_of(feature: Any) -> pa.DataType:
    if isinstance(feature, list):
        return pa.list_(_type_of(feature[0]))
    match feature:
        case {"_type": "Image"}:
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        case {"_type": "Value", "dtype": dtype}:
            return pa.type_for_alias(dtype)
    return pa.struct([(name, _type_of(inner)) for name, inner in feature.items()])


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of a schema's columns as Parquet names them."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    with pq.ParquetFile(empty) as file:
        return [file.schema.column(i).path for i in range(len(file.schema))]


def read_images(stream: IO[bytes], name: str, *, first: int = 0, column: str | None = None) -> Iterator[RawSample]:
    """The rows of a Parquet file with an image column as samples, as Hugging Face's datasets are laid out.

    The column holds encoded images, or structs of them as `bytes` with their `path`. column: its name; None: the only
    such column, else the one called image. The key is the name in `path`, else the number of the row.
    Raises ConfigError where no column is meant, CorruptShard where the file is damaged.
    """
    try:
        with pq.ParquetFile(stream) as file:
            chosen = _image_column(file.schema_arrow, name, column)
            index = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if index + rows <= first:
                    yield from (RawSample(f"{i:08d}", i, {}, None, 0) for i in range(index, index + rows))
                    index += rows
                    continue
                for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=[chosen]):
                    for cell in batch.column(0):
                        yield _image_sample(cell.as_py(), index, stream.tell())
                        index += 1
    except _DAMAGE as error:
        raise CorruptShard(f"no sound Parquet file: {str(error).splitlines()[0]}", 0) from error


def _image_column(schema: pa.Schema, name: str, asked: str | None) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if FOOTER_KEY in (schema.metadata or {}):
        raise ConfigError(f"{name}: labels of a run, not images")
    possible = [field.name for field in schema if holds_images(field.type)]
    chosen = [asked] if asked else possible if len(possible) == 1 else [c for c in possible if c.lower() == "image"]
    if len(chosen) != 1 or chosen[0] not in possible:
        raise ConfigError(f"{name}: which column holds the images? --image-key takes one of {possible}")
    return chosen[0]


def _image_sample(cell: Any, index: int, end: int) -> RawSample:
    path = cell.get("path") if isinstance(cell, dict) else None
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    key, _, extension = PurePosixPath(path or "").name.partition(".")
    extension = extension.lower() or "image"
    problem = None if data is not None else ("no_image", f"only the path of an image: {path}" if path else "null")
    return RawSample(key or f"{index:08d}", index, {extension: data or b""}, extension, end, problem)
