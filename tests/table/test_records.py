"""Windows as Parquet: what goes in comes out, and what is no window of ours is told."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg.types import Segment
from pipeline import table
from pipeline.errors import ConfigError, CorruptShard
from pipeline.records import OK, LabelRecord, Shard
from pipeline.table.filter import parse_filter
from pipeline.table.label_map import encode_label_map
from pipeline.table.window_metadata import digest_of
from tests.conftest import window_metadata

SEGMENTS = (Segment(0, 7, (0, 0, 3, 4), 0.123456789, None), Segment(1, 5, (3, 0, 1, 4), 1.0, "sky"))
PNG = encode_label_map(np.zeros((4, 4), np.int32))
ROWS = [
    LabelRecord("a", "s-1", 4, OK, None, 4, 4, PNG, SEGMENTS, 0.7654321, "ab"),
    LabelRecord("b", "s-1", 5, "undecodable", "cut", 4, None),
    LabelRecord("c", "s-1", 6, OK, None, 4, 4, PNG, (), None, "cd"),
]
METADATA = window_metadata(ROWS, window=1, failed={"undecodable": 1}, made_with={"torch": "2"})


def test_rows_and_footer_come_back_as_they_were():
    data = table.encode_window(ROWS, METADATA)
    assert table.read_window_metadata(io.BytesIO(data)) == METADATA
    back = table.read_records(io.BytesIO(data))
    assert [replace(r, quality=None, segments=()) for r in back] == [
        replace(r, quality=None, segments=()) for r in ROWS
    ]
    assert back[0].segments[1] == SEGMENTS[1]
    assert back[0].segments[0].score == pytest.approx(0.123456789)
    assert digest_of(back) == METADATA.digest


def test_columns_can_be_read_alone():
    data = table.encode_window(ROWS, METADATA)
    assert list(table.read_rows(io.BytesIO(data), ["index", "status"])) == [
        {"index": 4, "status": OK},
        {"index": 5, "status": "undecodable"},
        {"index": 6, "status": OK},
    ]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:2],
        [ROWS[0], ROWS[2], ROWS[1]],
        [ROWS[0], ROWS[1], replace(ROWS[2], shard="other")],
        [ROWS[0], ROWS[0], ROWS[2]],
    ],
)
def test_a_window_that_is_not_one_row_a_sample_is_never_made(rows):
    with pytest.raises(ValueError, match=r"consecutive|another shard"):
        table.encode_window(rows, METADATA)


def test_a_digest_tells_every_difference():
    changed = [
        replace(ROWS[0], key="x"),
        replace(ROWS[0], label_map=b"other"),
        replace(ROWS[0], quality=0.5),
        replace(ROWS[0], segments=SEGMENTS[:1]),
        replace(ROWS[0], status="poison"),
    ]
    assert len({digest_of([row]) for row in [ROWS[0], *changed]}) == 6


def test_what_made_the_rows_decides_whether_two_attempts_agree():
    same = replace(METADATA, attempt="other", made_with={}, digest="")
    assert same.identity == METADATA.identity
    for change in ({"fingerprint": "g"}, {"etag": "x"}, {"size": 1}, {"url": "u"}, {"window": 2}, {"shard": "t"}):
        assert replace(METADATA, **change).identity != METADATA.identity


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_file_is_a_value_error_or_reads(place, value, cut):
    data = bytearray(table.encode_window(ROWS, METADATA))
    data[place % len(data)] = value
    bent = bytes(data[: place % len(data)] if cut else data)
    for read in (table.read_window_metadata, table.read_records):
        try:
            read(io.BytesIO(bent))
        except (ValueError, UnicodeDecodeError):
            continue


def test_a_parquet_file_of_somebody_else_is_told():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), buffer)
    with pytest.raises(ValueError, match="without our footer"):
        table.read_window_metadata(buffer)


def test_pinned_shards_come_back_without_what_they_are_opened_by():
    shard = Shard("s-1", "https://h/a.tar", 5, "e", "https://h/a.tar?sig=secret")
    data = table.encode_shards([shard])
    assert b"secret" not in data
    assert list(table.decode_shards(data)) == [shard]


# -- Parquet as input ----------------------------------------------------------------------------------------------


def parquet(table_, **options):
    buffer = io.BytesIO()
    pq.write_table(table_, buffer, **options)
    return buffer


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_an_image_column_as_hugging_face_writes_it():
    cells = [{"bytes": b"1", "path": "x/cat.7.JPG"}, {"bytes": b"2", "path": None}, {"bytes": None, "path": "far.png"}]
    data = parquet(pa.table({"label": [1, 2, 3], "image": pa.array(cells, STRUCT)}), row_group_size=2)
    found = list(table.images.read_images(data, "x.parquet"))
    assert [(s.index, s.key, s.image) for s in found] == [
        (0, "cat", "7.jpg"),
        (1, "00000001", "image"),
        (2, "far", "png"),
    ]
    assert [s.members[s.image] for s in found if s.image] == [b"1", b"2", b""]
    assert found[2].problem == ("no_image", "only the path of an image: far.png")


def test_row_groups_before_the_first_wanted_are_not_read():
    data = parquet(pa.table({"image": [b"%d" % i for i in range(10)]}), row_group_size=2)
    found = list(table.images.read_images(data, "x.parquet", first=5))
    assert [s.index for s in found] == list(range(10))
    assert [s.image is None for s in found] == [True] * 4 + [False] * 6


def test_of_several_image_columns_one_must_be_named():
    data = parquet(pa.table({"left": [b"1"], "right": [b"2"], "name": ["x"]}))
    with pytest.raises(ConfigError, match="left"):
        list(table.images.read_images(data, "x.parquet"))
    assert [s.members["image"] for s in table.images.read_images(data, "x.parquet", column="right")] == [b"2"]
    with pytest.raises(ConfigError, match="left"):
        list(table.images.read_images(data, "x.parquet", column="name"))


DATA = [b"\xff\xd81", b"\x89PNG2", b"\xff\xd83"]
PATHS = pa.array(["x/a.jpg", "b.png", "c.jpg"])
STORED = {  # the same bytes in every way that a column of them may have
    "binary": pa.array(DATA, pa.binary()),
    "dictionary": pa.array(DATA, pa.binary()).dictionary_encode(),
    "dictionary of large binary": pa.array(DATA, pa.large_binary()).dictionary_encode(),
    "large binary": pa.array(DATA, pa.large_binary()),
    "binary view": pa.array(DATA, pa.binary_view()),
    "numbers": pa.array([list(data) for data in DATA], pa.list_(pa.uint8())),
    "signed numbers": pa.array([[n - 256 if n > 127 else n for n in data] for data in DATA], pa.large_list(pa.int8())),
    "struct": pa.StructArray.from_arrays([pa.array(DATA, pa.large_binary()), PATHS], ["bytes", "path"]),
    "struct of dictionaries": pa.StructArray.from_arrays(
        [pa.array(DATA).dictionary_encode(), PATHS.dictionary_encode()], ["bytes", "path"]
    ),
}


@pytest.mark.parametrize("how", STORED)
def test_images_are_read_however_their_bytes_are_stored(how):
    data = parquet(pa.table({"n": [1, 2, 3], "image": STORED[how]}), row_group_size=2)
    found = list(table.images.read_images(data, "x.parquet", first=1))
    assert [s.members[s.image] for s in found if s.image] == DATA
    assert [s.key for s in found] == (["a", "b", "c"] if "struct" in how else [f"{n:08d}" for n in range(3)])


def test_bytes_of_one_length_are_images_only_where_nothing_else_is():
    of_one_length = pa.array([b"12345678"] * 3, pa.binary(8))
    data = parquet(pa.table({"sha": of_one_length, "photo": STORED["dictionary"]}))
    assert next(table.images.read_images(data, "x.parquet")).members == {"image": DATA[0]}
    assert next(table.images.read_images(data, "x.parquet", column="sha")).members == {"image": b"12345678"}
    alone = parquet(pa.table({"sha": of_one_length}))
    assert len(list(table.images.read_images(alone, "x.parquet"))) == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[data] for data in DATA], pa.list_(pa.binary())),
        pa.array(["aGVsbG8="] * 3),
        pa.StructArray.from_arrays([PATHS], ["path"]),
        pa.array([[1.5]] * 3),
    ],
)
def test_a_file_without_a_column_of_images_is_refused_with_what_it_has(column):
    data = parquet(pa.table({"n": [1, 2, 3], "image": column}))
    with pytest.raises(ConfigError, match=r"no column of encoded images, .*: n \(int64\), image \(\w+") as caught:
        list(table.images.read_images(data, "x.parquet"))
    assert "\n" not in str(caught.value)


def test_labels_of_a_run_are_not_taken_for_images():
    with pytest.raises(ConfigError, match="labels of a run"):
        list(table.images.read_images(io.BytesIO(table.encode_window(ROWS, METADATA)), "x.parquet"))


def test_a_damaged_parquet_shard_is_damage():
    data = parquet(pa.table({"image": [b"1" * 1000] * 10})).getvalue()
    with pytest.raises(CorruptShard):
        list(table.images.read_images(io.BytesIO(data[:-20]), "x.parquet"))


SINGLE = replace(ROWS[0], index=4, segments=SEGMENTS[:1], quality=0.95)  # as 0.1.0 wrote images of one segment
BY_0_1_0 = [SINGLE, replace(ROWS[0], index=5, quality=0.6), replace(ROWS[2], index=6)]


def rows_of(columns=None, **more):
    metadata = replace(METADATA, failed={}, digest=digest_of(BY_0_1_0))
    return list(table.read_rows(io.BytesIO(table.encode_window(BY_0_1_0, metadata)), columns, **more))


@pytest.mark.parametrize("columns", [None, ["quality"], ["index", "quality"], ["quality", "num_segments"]])
def test_one_segment_has_no_quality_though_0_1_0_wrote_one(columns):
    found = rows_of(columns)
    assert [row["quality"] for row in found] == [None, pytest.approx(0.6), None]
    assert list(found[0]) == (columns or table.SCHEMA.names)


@pytest.mark.parametrize(
    ("where", "indices"),
    [
        ("quality > 0", [5]),
        ("quality > 0.9", []),
        ("quality <= 1 or index == 4", [4, 5]),
        ("not quality > 0.9", [5]),
        ("quality in [0.95]", []),
        ("num_segments == 1", [4]),
        ("quality > 0 or num_segments == 1", [4, 5]),
    ],
)
def test_a_condition_knows_of_no_quality_of_one_segment(where, indices):
    assert [row["index"] for row in rows_of(["index"], filter=parse_filter(where))] == indices


def test_what_was_committed_is_proved_as_it_was_committed():
    data = table.encode_window(BY_0_1_0, replace(METADATA, failed={}, digest=digest_of(BY_0_1_0)))
    assert digest_of(table.read_records(io.BytesIO(data))) == digest_of(BY_0_1_0)
