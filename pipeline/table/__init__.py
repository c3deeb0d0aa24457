"""The part of the engine that knows Parquet: label records, images in tables, windows joined into larger files."""

import os

# Arrow's own allocator keeps what it frees, in pages of 2 MB; its C++ side takes another from here alone
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from pipeline.table import concat, images
from pipeline.table.plausible import Places
from pipeline.table.records import (
    SCHEMA,
    decode_rows,
    decode_shards,
    encode_rows,
    encode_shards,
    encode_window,
    read_window_metadata,
)
from pipeline.table.rows import as_record, read_records, read_rows, segments_in

__all__ = [
    "SCHEMA",
    "Places",
    "as_record",
    "decode_rows",
    "decode_shards",
    "encode_rows",
    "encode_shards",
    "encode_window",
    "images",
    "concat",
    "read_window_metadata",
    "read_records",
    "read_rows",
    "segments_in",
]
