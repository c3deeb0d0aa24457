"""The part of the engine that knows Parquet: label records, images in tables, windows joined into larger files."""

from pipeline.table import images, joined
from pipeline.table.records import (
    SCHEMA,
    as_record,
    categories,
    decode_rows,
    decode_shards,
    encode_rows,
    encode_shards,
    encode_window,
    read_footer,
    read_records,
    read_rows,
)

__all__ = [
    "SCHEMA",
    "as_record",
    "categories",
    "decode_rows",
    "decode_shards",
    "encode_rows",
    "encode_shards",
    "encode_window",
    "images",
    "joined",
    "read_footer",
    "read_records",
    "read_rows",
]
