"""How many samples shards hold: exact where they say it, near the truth and honest about it where they do not."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.inputs import count as counting
from pipeline.inputs.count import FIRST, count
from pipeline.inputs.shards import pin
from pipeline.storage import filesystem
from tests.conftest import jpeg, samples, write_shard


def tars(folder, sizes):
    for number, size in enumerate(sizes):
        write_shard(folder / f"t-{number:03d}.tar", samples(size))
    return pin([str(folder / "t-*.tar")])


@pytest.mark.parametrize("size", [0, 1, FIRST - 1, FIRST])
def test_a_short_tar_is_counted_to_its_end(tmp_path, size):
    shards = tars(tmp_path, [size])
    counts = count(shards)
    assert (counts.total, counts.exact, counts.error) == (size, True, 0.0)


def test_a_long_tar_is_estimated_from_its_beginning(tmp_path):
    counts = count(tars(tmp_path, [10 * FIRST]))
    assert counts.total == pytest.approx(10 * FIRST, rel=0.05)
    assert not counts.exact
    assert counts.error is None  # one shard does not tell how others differ


def test_many_tars_are_estimated_from_a_few(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "TARS", 3)
    opened, real = [], filesystem.open_ranged

    def counted(*given):
        opened.append(given)
        return real(*given)

    monkeypatch.setattr(filesystem, "open_ranged", counted)
    for number in range(7):  # the later the shard, the larger its samples
        content = [(key, {**members, "bin": bytes(512 * number)}) for key, members in samples(60)]
        write_shard(tmp_path / f"t-{number:03d}.tar", content)
    shards = pin([str(tmp_path / "t-*.tar")])
    counts = count(shards)
    assert len(opened) == 3
    assert list(counts.samples) == [shard.id for shard in shards]
    assert counts.total == pytest.approx(420, rel=0.3)
    assert not counts.exact
    assert counts.error is not None
    assert 0.1 < counts.error < 1


def test_shards_that_are_all_alike_are_still_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "TARS", 2)
    counts = count(tars(tmp_path, [40, 40, 40]))
    assert (counts.exact, counts.error) == (False, 0.0)


def test_the_same_shards_are_counted_the_same_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "TARS", 2)
    shards = tars(tmp_path, [60, 40, 80, 50, 45])
    assert dict(count(shards).samples) == dict(count(shards[::-1]).samples)


def test_folders_and_parquet_say_how_many_they_hold(tmp_path):
    for number in range(3 * FIRST):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    rows = pa.table({"image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(2 * FIRST)]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    counts = count(pin([str(tmp_path / "photos"), str(tmp_path / "rows.parquet")]))
    assert (list(counts.samples.values()), counts.exact) == ([3 * FIRST, 2 * FIRST], True)


def test_a_small_compressed_tar_is_counted_to_its_end(tmp_path):
    plain = write_shard(tmp_path / "x.tar", samples(6 * FIRST)).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain))
    counts = count(pin([str(tmp_path / "x.tar.gz")]))
    assert (counts.total, counts.exact) == (6 * FIRST, True)


def test_a_large_compressed_tar_is_estimated_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "DECOMPRESSED", 400_000)
    random = np.random.default_rng(0)
    write_shard(tmp_path / "x.tar", [(f"{i:04d}", {"jpg": random.bytes(10_000)}) for i in range(200)])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes(), 1))
    counts = count(pin([str(tmp_path / "x.tar.gz")]))
    assert not counts.exact
    assert counts.total == pytest.approx(200, rel=0.3)


def test_of_a_damaged_tar_what_lies_before_the_damage_counts(tmp_path):
    path = write_shard(tmp_path / "t.tar", samples(5))
    path.write_bytes(path.read_bytes()[:-11000])
    counts = count(pin([str(path)]))
    assert 3 <= counts.total <= 5
