"""Windows joined into one larger Parquet file, with a list of them in its metadata."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.table.records import DAMAGE, parquet, read_window_metadata, schema_with, settings
from pipeline.table.window_metadata import WindowMetadata

LIST_KEY = b"diffseg.windows"  # of the list of windows in the file's metadata
ROW_GROUP = 4 << 20  # bytes of a row group: about a window, so that one can still be read alone


@contextmanager
def joining_windows(
    out: IO[bytes], windows: Sequence[Mapping[str, Any]], later: Collection[str] = ()
) -> Iterator[Callable[[IO[bytes]], WindowMetadata]]:
    """Join the files of windows into one Parquet file; memory holds a row group.

    windows: the list that the file keeps, filled by the caller until the block ends. later: columns of LATER that they
    may have. Yields a function that adds a
    window's file, returns its metadata, and raises ValueError where it is no whole window.
    """
    waiting: list[pa.Table] = []
    size = 0  # of what waits, in bytes
    schema = schema_with(later)
    with pq.ParquetWriter(out, schema, **settings(schema.names)) as file:

        def flush() -> None:
            nonlocal size
            file.write_table(pa.concat_tables(waiting))
            waiting.clear()
            size = 0

        def add(stream: IO[bytes]) -> WindowMetadata:
            nonlocal size
            metadata = read_window_metadata(stream)
            table = _whole_window(stream, metadata, schema)
            waiting.append(table)
            size += table.nbytes
            if size >= ROW_GROUP:
                flush()
            return metadata

        yield add
        if waiting:
            flush()
        file.add_key_value_metadata({LIST_KEY: json.dumps(windows).encode()})


def read_window_list(stream: IO[bytes]) -> bytes:
    """The list of windows in a compacted file, as JSON; only its end is read. Raises ValueError where it has none."""
    try:
        with parquet(stream) as file:
            raw = (file.metadata.metadata or {}).get(LIST_KEY)
    except DAMAGE as error:
        raise ValueError(f"no Parquet file: {error}") from error
    if raw is None:
        raise ValueError("a Parquet file that does not say which windows it holds")
    return bytes(raw)


def _whole_window(stream: IO[bytes], metadata: WindowMetadata, schema: pa.Schema) -> pa.Table:
    try:
        with parquet(stream) as file:
            table = file.read(use_threads=False).replace_schema_metadata(None)
    except DAMAGE as error:
        raise ValueError(f"damaged rows: {error}") from error
    indices = range(metadata.first_index, metadata.first_index + metadata.rows)
    if table["index"].to_pylist() != list(indices) or set(table["shard"].to_pylist()) - {metadata.shard}:
        raise ValueError(f"rows are not {metadata.first_index} onwards of {metadata.shard}")
    return pa.concat_tables([schema.empty_table(), table], promote_options="default").cast(schema)
