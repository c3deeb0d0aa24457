"""Parquet with encoded images in it, laid out as Hugging Face's datasets are: shards to read, exports to write."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, CorruptShard
from pipeline.records import READER, RawSample
from pipeline.table.records import DAMAGE, METADATA_KEY, parquet

Row: TypeAlias = Mapping[str, Any]


@contextmanager
def writing_features(
    out: IO[bytes], features: Mapping[str, Any], group: int, notice: Mapping[str, str]
) -> Iterator[Callable[[Row], None]]:
    """Write rows to a Parquet file as they come, `group` of them at a time. Yields the function that takes a row.

    features: the columns as Hugging Face's datasets describes them; they give the types and are kept in the file.
    notice: of the data's origin, kept beside them.
    """
    metadata = {b"huggingface": json.dumps({"info": {"features": features}, **notice}).encode()}
    schema = pa.schema([(name, _type_of(feature)) for name, feature in features.items()], metadata=metadata)
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
        case {"_type": "ClassLabel"}:
            return pa.int64()
    return pa.struct([(name, _type_of(inner)) for name, inner in feature.items()])


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of a schema's columns as Parquet names them."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    with parquet(empty) as file:
        return [file.schema.column(i).path for i in range(len(file.schema))]


def read_images(
    stream: IO[bytes], name: str, *, first: int = 0, column: str | None = None, reader: int = READER
) -> Iterator[RawSample]:
    """Read the rows of a Parquet file with an image column as samples; the layout is that of Hugging Face's datasets.

    The column holds encoded images, or structs of them as `bytes` with their `path`. column: its name; None: the only
    such column, else the one called image. The key is the name in `path`, else the number of the row.
    Raises ConfigError where no column is meant, CorruptShard where the file is damaged.
    """
    try:
        with parquet(stream) as file:
            chosen = _image_column(file.schema_arrow, name, column, reader)
            index = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if index + rows <= first:
                    yield from (RawSample(f"{i:08d}", i, {}, None, 0) for i in range(index, index + rows))
                    index += rows
                    continue
                for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=[chosen], use_threads=False):
                    for cell in batch.column(0):
                        yield _image_sample(cell.as_py(), index, stream.tell())
                        index += 1
    except DAMAGE as error:
        raise CorruptShard(f"no sound Parquet file: {str(error).splitlines()[0]}", 0) from error


def _image_column(schema: pa.Schema, name: str, asked: str | None, reader: int) -> str:
    if METADATA_KEY in (schema.metadata or {}):
        raise ConfigError(f"{name}: labels of a run, not images")
    of_bytes = [field.name for field in schema if _holds_bytes(field.type, reader)]
    unusual = [field.name for field in schema if reader > 1 and _is_of_bytes(field.type)]  # rather hashes, else images
    possible = of_bytes or unusual
    chosen = [asked] if asked else possible if len(possible) == 1 else [c for c in possible if c.lower() == "image"]
    if len(chosen) == 1 and chosen[0] in (*of_bytes, *unusual):
        return chosen[0]
    if possible:
        raise ConfigError(f"{name}: which column holds the images? --image-key takes one of {possible}")
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ConfigError(f"{name}: no column of encoded images, which are binary, or structs of bytes and path: {columns}")


def _holds_bytes(kind: pa.DataType, reader: int) -> bool:
    """Whether a column holds byte strings, however they are stored, or structs of them."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type, reader)
    if reader > 1 and pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type, reader)
    if reader > 1 and isinstance(kind, pa.ExtensionType):
        return _holds_bytes(kind.storage_type, reader)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or (reader > 1 and pa.types.is_binary_view(kind))
    )


def _is_of_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes as images are rarely stored: of one fixed length, or as lists of numbers."""
    of_numbers = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    one_by_one = of_numbers and (pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type))
    return bool(one_by_one or pa.types.is_fixed_size_binary(kind))


def _image_sample(cell: Any, index: int, end: int) -> RawSample:
    path = cell.get("path") if isinstance(cell, dict) else None
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    data = bytes(byte % 256 for byte in data) if isinstance(data, list) else data  # some writers have no type for bytes
    path = path if isinstance(path, str) else ""
    key, _, extension = PurePosixPath(path).name.partition(".")
    extension = extension.lower() or "image"
    problem = None if data is not None else ("no_image", f"only the path of an image: {path}" if path else "null")
    return RawSample(key or f"{index:08d}", index, {extension: data or b""}, extension, end, problem)
