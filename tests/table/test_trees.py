"""Trees and vectors in rows: what goes in comes out, and rows without them are the bytes that they always were."""

import io
import json
import lzma
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffseg.types import IGNORE
from pipeline import table
from pipeline.records import LATER, OK, LabelRecord
from pipeline.table.label_map import encode_label_map
from pipeline.table.leaf_map import HEADER, decode_leaf_map, encode_leaf_map
from pipeline.table.trees import decode_tree, decode_vectors, encode_tree, encode_vectors
from pipeline.table.window_metadata import digest_of
from tests.conftest import window_metadata
from tests.support.labelled import CUT, record, tree_record
from tests.support.trees import a_tree, a_vector_each
from tests.table.test_records import METADATA, ROWS


def changed(row: LabelRecord, **values: Any) -> LabelRecord:
    return replace(row, **values)


FAILED = LabelRecord("b", "s-1", 1, "undecodable", "cut")
KEPT = {"license": "CC0", "url": "https://a"}
TREES = [
    changed(tree_record("a", "s-1", 0, 0, CUT), kept=KEPT, words=b"three"),
    FAILED,
    tree_record("c", "s-1", 2, 2, CUT),
]


def encoded(rows):
    return table.encode_window(rows, window_metadata(rows))


def test_trees_and_vectors_come_back_as_they_were():
    data = io.BytesIO(encoded(TREES))
    assert table.read_window_metadata(data).digest == digest_of(table.read_records(data))
    first, failed, _ = table.read_rows(data, ["leaf_map", "tree", "vectors"])
    leaf_map, tree = a_tree(0, (9, 12))
    assert (decode_leaf_map(first["leaf_map"]) == leaf_map).all()
    assert (decode_tree(first["tree"]).leaves == tree.leaves).all()
    assert (decode_tree(first["tree"]).merges == tree.merges).all()
    vectors = a_vector_each(0, len(tree.leaves))
    assert (decode_vectors(first["vectors"]).values == vectors.values).all()
    assert (decode_vectors(first["vectors"]).scales == vectors.scales).all()
    assert list(failed.values()) == [None] * 3


@pytest.mark.parametrize("leaves", [1, 2, 256])
def test_a_leaf_takes_20_bytes_of_tree_and_66_of_vectors(leaves):
    _, tree = a_tree(0, leaves=leaves)
    assert len(encode_tree(tree)) == 20 * leaves - 14
    assert len(encode_vectors(a_vector_each(0, leaves))) == 66 * leaves


def literal(data):
    """A leaf map as the storage format says, run by run."""
    plain = lzma.decompress(data)
    height, width, size = HEADER.unpack(plain[: HEADER.size])
    count = (len(plain) - HEADER.size) // (1 + size)
    lengths, ids = plain[HEADER.size :][:count], plain[HEADER.size + count :]
    found = [int.from_bytes(ids[i * size : (i + 1) * size], "little") for i in range(count) for _ in range(lengths[i])]
    return np.array([IGNORE if id_ == 256**size - 1 else id_ for id_ in found]).reshape(height, width)


@pytest.mark.parametrize("leaves", [1, 9, 255, 256])
@pytest.mark.parametrize("shape", [(40, 51), (1, 1), (1, 700), (3, 1)])
def test_a_leaf_map_comes_back_by_the_format_as_written(leaves, shape):
    leaf_map, _ = a_tree(1, shape, leaves)
    leaf_map[0, 0] = IGNORE
    data = encode_leaf_map(leaf_map)
    assert decode_leaf_map(data).dtype == np.int32
    assert (decode_leaf_map(data) == leaf_map).all()
    assert (literal(data) == leaf_map).all()


def test_a_leaf_map_is_smaller_than_its_png():
    leaf_map = a_tree(5, (300, 400), 64)[0]
    ragged = leaf_map[:, (np.arange(400) + np.random.default_rng(0).integers(0, 2, 400)).clip(0, 399)]
    assert len(encode_leaf_map(ragged)) < len(encode_label_map(ragged))


def header(height, width, size, runs=b""):
    return lzma.compress(HEADER.pack(height, width, size) + runs, lzma.FORMAT_ALONE)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"12345", bytes(20), b"\x89PNG\r\n", lzma.compress(b"12", lzma.FORMAT_ALONE)),
        encode_leaf_map(np.zeros((9, 9), np.int32))[:-8],
        *(header(2, 2, 1), header(2, 2, 1, b"\3\0"), header(2, 2, 1, b"\5\0"), header(2, 2, 3, b"\4\0\0\0")),
        *(header(2, 2, 1, b"\4\0\0"), header(0, 4, 1), header(2**31, 2**31, 1), header(1, 1, 1, bytes(10**6))),
    ],
)
def test_bytes_that_are_no_leaf_map_are_refused(data):
    with pytest.raises(ValueError, match=r"\w"):
        decode_leaf_map(data)


@pytest.mark.parametrize("data", [b"", b"12345", bytes(20)])
def test_bytes_that_are_no_tree_are_refused(data):
    with pytest.raises(ValueError, match="no tree"):
        decode_tree(data)


def test_a_window_without_trees_is_the_bytes_that_0_1_0_wrote():
    """The digest was made with the code of 0.1.0, and the file is written here as that code wrote it."""
    as_then = [changed(row, label_map=label_map) for row, label_map in zip(ROWS, (b"png", None, b"png2"), strict=True)]
    assert digest_of(as_then) == "2ca488ee8e02475f44f02419d5bb9d1c"
    columns = {name: [getattr(row, name) for row in ROWS] for name in table.SCHEMA.names}
    columns["segments"] = [None if row.status != OK else [asdict(segment) for segment in row.segments] for row in ROWS]
    metadata = {b"diffseg": json.dumps(asdict(METADATA)).encode()}
    wanted = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema=table.SCHEMA).replace_schema_metadata(metadata),
        wanted,
        compression={name: "none" if name == "label_map" else "zstd" for name in columns},
        use_dictionary=["shard", "status"],
        write_statistics=[name for name in columns if name != "label_map"],
    )
    assert table.encode_window(ROWS, METADATA) == wanted.getvalue()


@pytest.mark.parametrize("name", LATER)
def test_a_column_without_a_value_is_not_written(name):
    rows = [changed(row, **{name: None}) for row in TREES]
    data = io.BytesIO(encoded(rows))
    names = [each for each in LATER if each != name]
    assert pq.ParquetFile(data).schema_arrow.names == [*table.SCHEMA.names, *names]
    assert next(table.read_rows(data, [name, "index"])) == {name: None, "index": 0}
    assert next(table.read_rows(data, [name])) == {name: None}
    assert table.read_records(data) == table.read_records(io.BytesIO(encoded(rows)))


@pytest.mark.parametrize("name", LATER)
def test_a_digest_covers_the_columns_that_are_there_and_says_so(name):
    plain = changed(TREES[0], **dict.fromkeys(LATER))
    assert ":" not in digest_of([plain])
    found = {digest_of(rows) for rows in (TREES, [changed(TREES[0], **{name: b"other"}), *TREES[1:]])}
    found |= {digest_of([changed(row, **{name: None}) for row in TREES])}
    assert len(found) == 3
    assert all(digest.startswith("2:") for digest in found)


def test_a_plain_row_has_no_part_of_a_tree():
    row = record("a", "s-1", 0, np.zeros((9, 12), np.int32))
    assert [getattr(row, name) for name in LATER] == [None] * len(LATER)
