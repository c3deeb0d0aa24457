"""The shards of a run, packed: what comes out is what went in, in order."""

import pytest

from pipeline.records import Shard
from pipeline.run.shard_index import ShardIndex

SHARDS = [
    Shard("b-1", "s3://bucket/b.tar", 10, '"e"', "s3://bucket/b.tar"),
    Shard("a-2", "https://host/ä.tar", 0, "", "https://host/ä.tar?signed=1"),
    Shard("c-3", "file:///photos", 7, "digest", "file:///photos", b"\x00list"),
]


def test_every_shard_comes_out_as_it_went_in_and_in_order():
    index = ShardIndex(SHARDS)
    assert list(index.values()) == SHARDS
    assert [(s.source, s.files) for s in index.values()] == [(s.source, s.files) for s in SHARDS]
    assert list(index) == ["b-1", "a-2", "c-3"]
    assert [index.at(index.position(shard.id)) for shard in SHARDS] == SHARDS
    assert (len(index), index.bytes) == (3, 17)


def test_what_is_not_there_is_a_key_error():
    for strange in ("", "a", "a-20", "d"):
        assert strange not in ShardIndex(SHARDS)
        with pytest.raises(KeyError, match=repr(strange)):
            ShardIndex(SHARDS)[strange]
    assert len(ShardIndex()) == 0
    assert "a" not in ShardIndex()
