"""Reading a pinned shard: still the one that was pinned, damaged only where two reads agree."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import CorruptShard, PipelineError, ShardChanged, StorageError
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.inputs.shards import pin
from pipeline.records import ImageSample
from pipeline.storage import filesystem
from pipeline.storage.ranged_reader import RangedReader
from tests.conftest import jpeg, samples, write_shard
from tests.support.damage import DAMAGED, MEMBERS, SOUND, flip


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "s.tar", samples(10))
    [shard] = pin([str(tmp_path / "s.tar")])
    return shard


def path_of(shard):
    return Path(shard.url.removeprefix("file://"))


def read(shard, on_sample, **options):
    """Indices of what came, and the error after it."""
    found = []
    try:
        for sample in read_shard(shard, **options):
            found.append(sample.index)
            on_sample(sample)
    except PipelineError as error:
        return found, error
    return found, None


def test_samples_come_in_order_with_their_bytes(shard):
    found = list(read_shard(shard))
    assert [(s.index, s.key, s.members["jpg"]) for s in found] == [(i, f"{i:04d}", jpeg(i)) for i in range(10)]


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_that_two_reads_agree_on_is_the_shards_own(tmp_path, what):
    data, whole = DAMAGED[what]
    (tmp_path / "s.tar").write_bytes(data)
    [shard] = pin([str(tmp_path / "s.tar")])
    found, error = read(shard, lambda sample: None, whole=False, window=4)
    assert len(found) == whole
    assert isinstance(error, CorruptShard)


class Wire:
    """Bytes that arrive damaged the first time."""

    def __init__(self, *reads):
        self.reads = list(reads)

    def open(self, url, size):
        return io.BytesIO(self.reads.pop(0) if len(self.reads) > 1 else self.reads[0])


@pytest.mark.parametrize("second", [SOUND, flip(SOUND, MEMBERS[8][0] + 10)])
def test_damage_that_a_second_read_does_not_find_is_a_storage_error(tmp_path, monkeypatch, second):
    (tmp_path / "s.tar").write_bytes(SOUND)
    [shard] = pin([str(tmp_path / "s.tar")])
    monkeypatch.setattr(filesystem, "open_ranged", Wire(flip(SOUND, MEMBERS[6][0] + 10), second).open)
    with pytest.raises(StorageError) as caught:
        list(read_shard(shard))
    assert caught.value.retryable


def test_a_shard_replaced_before_it_is_read_is_refused(shard):
    write_shard(path_of(shard), samples(11))
    with pytest.raises(ShardChanged, match="changed since"):
        next(read_shard(shard))


def test_a_shard_replaced_by_one_of_its_size_is_refused(shard):
    write_shard(path_of(shard), list(reversed(samples(10))))
    os.utime(path_of(shard), (1, 1))
    assert path_of(shard).stat().st_size == shard.size
    with pytest.raises(ShardChanged):
        next(read_shard(shard))


def test_a_shard_that_is_gone_is_refused(shard):
    path_of(shard).unlink()
    with pytest.raises(ShardChanged, match="gone"):
        next(read_shard(shard))


def test_a_shard_replaced_while_it_is_read_is_noticed_before_its_window_ends(shard):
    def touch(sample):
        if sample.index == 1:
            os.utime(path_of(shard), (1, 1))

    found, error = read(shard, touch, window=4)
    assert isinstance(error, ShardChanged)
    assert found == [0, 1, 2, 3]  # the fourth would let the window be committed


def test_without_windows_a_replaced_shard_is_noticed_at_the_end(shard):
    found, error = read(shard, lambda sample: os.utime(path_of(shard), (1, 1)))
    assert len(found) == 10
    assert isinstance(error, ShardChanged)


def test_a_window_in_the_middle_is_read_without_the_images_before_it(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).bytes(400_000)
    write_shard(tmp_path / "s.tar", [(f"{i:04d}", {"jpg": noise}) for i in range(40)])
    [shard] = pin([str(tmp_path / "s.tar")])
    fetched = []
    ask = RangedReader._get

    def count(self, start, end):
        fetched.append(end - start)
        return ask(self, start, end)

    monkeypatch.setattr(RangedReader, "_get", count)
    found = []
    for sample in read_shard(shard, first=36, window=4):
        found.append(len(sample.members["jpg"]))
    assert found == [0] * 36 + [400_000] * 4
    assert sum(fetched) < 0.4 * shard.size


def test_a_folder_of_images_is_read_in_order_of_name(tmp_path):
    for name, number in (("b/2.jpg", 2), ("a.jpg", 0), ("b/1.jpg", 1), ("b/1.txt", 9)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg(number))
    [shard] = pin([str(tmp_path / "in")])
    found = list(read_shard(shard, window=2))
    assert [(s.index, s.key, s.members["jpg"]) for s in found] == [
        (0, "a", jpeg(0)),
        (1, "b/1", jpeg(1)),
        (2, "b/2", jpeg(2)),
    ]
    assert [bool(s.members["jpg"]) for s in read_shard(shard, first=2)] == [False, False, True]
    assert isinstance(decode_sample(found[0], shard.reader), ImageSample)
    (tmp_path / "in/c.jpg").write_bytes(jpeg(3))
    assert [s.key for s in read_shard(shard)] == ["a", "b/1", "b/2"], "the list is that of the pin"


def test_the_sum_of_an_image_is_that_of_its_encoded_bytes(shard):
    sample = decode_sample(next(read_shard(shard)), shard.reader)
    assert isinstance(sample, ImageSample)
    assert len(sample.sha256) == 64
    assert np.asarray(Image.open(io.BytesIO(jpeg(0)))).shape == sample.image.shape
    assert zlib.crc32(sample.image.tobytes()) == zlib.crc32(np.asarray(Image.open(io.BytesIO(jpeg(0)))).tobytes())
