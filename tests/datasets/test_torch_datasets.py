"""A run as torch datasets: every sample with its labels, once, however many read."""

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.datasets import Example, RunDataset, RunStream, samples
from pipeline.datasets.source_images import SourceImages
from pipeline.errors import ConfigError, ShardChanged
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.reading import read_samples
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import ShardTask
from pipeline.records import LabelRecord
from pipeline.run.compact import compact
from pipeline.run.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.worker.committer import as_webdataset
from tests.support import labelled
from tests.support.labelled import SIZE, at_source, label_map, make_run, photo

KEYS = [[f"{shard}{i}" for i in range(10)] for shard in "abc"]  # three windows a shard
EVERY = [key for keys in KEYS for key in keys]
KINDS: tuple[Callable[..., Any], ...] = (RunDataset, RunStream)
FAILED = {(0, 3): "undecodable", (2, 0): "no_image"}


@pytest.fixture
def ledger(tmp_path):
    return make_run(tmp_path, KEYS)


def number_of(key: str) -> int:
    """What the photo of a key shows and its labels are drawn from."""
    return 100 * "abc".index(key[0]) + int(key[1:])


def key_of(example: Example) -> str:
    return example.key


def as_they_are(batch):
    return batch


def keys(stream: RunStream[Example]) -> list[str]:
    return [example.key for example in stream]


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_photos_with_labels_of_their_size(ledger, kind):
    found = list(kind(str(ledger)))

    assert [example.key for example in found] == EVERY
    for example in found:
        number = number_of(example.key)
        assert example.image.shape == (3, *SIZE)
        assert example.image.dtype == torch.uint8
        assert example.image[:, 0, 0].tolist() == [number % 256, number // 256, 7]
        assert example.label_map.dtype == torch.int64
        assert (example.label_map.numpy() == at_source(label_map(number))).all()
        areas = np.bincount(at_source(label_map(number))[at_source(label_map(number)) >= 0])
        assert [segment.area for segment in example.segments] == areas.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wanted_is_told_as_exports_are(tmp_path, kind):
    run = str(make_run(tmp_path, KEYS, failed=FAILED))
    labelled = [key for key in EVERY if key not in ("a3", "c0")]

    assert [e.key for e in kind(run)] == labelled
    assert [e.key for e in kind(run, where="quality > 0.65")] == [k for k in labelled if int(k[1:]) > 6]
    sides = [[e.key for e in kind(run, split=0.6, side=side)] for side in ("train", "val")]
    assert sorted(sides[0] + sides[1]) == labelled
    assert min(map(len, sides)) > 0
    [first, *_] = kind(run, min_score=0.8)
    assert set(np.unique(first.label_map)) == {-1, 0, 1}
    assert [segment.id for segment in first.segments] == [0, 1]


def test_a_map_style_dataset_knows_its_length_and_gives_any_sample_at_any_time(ledger):
    data = RunDataset(str(ledger), transform=key_of)

    assert len(data) == 30
    assert [data[place] for place in (29, 3, 17, 3)] == ["c9", "a3", "b7", "a3"]


def test_rows_of_few_windows_are_kept(ledger, monkeypatch):
    monkeypatch.setattr(samples, "KEPT", 2)
    read = []
    rows = Ledger.rows
    data = RunDataset(str(ledger), transform=key_of)

    def counted(*given, **named):
        read.append(1)
        return rows(*given, **named)

    monkeypatch.setattr(Ledger, "rows", counted)

    assert [data[place] for place in range(8)] == EVERY[:8]
    assert len(read) == 2
    assert [data[place] for place in (0, 9, 0, 4)] == ["a0", "a9", "a0", "a4"]
    assert len(read) == 4


def test_photos_may_come_from_the_tars_beside_the_labels(tmp_path):
    ledger = with_tars(make_run(tmp_path, KEYS))
    for number in range(3):
        (tmp_path / "in" / f"s-{number}.tar").unlink()

    for kind in KINDS:
        found = list(kind(str(ledger), photos="webdataset"))
        assert [example.key for example in found] == EVERY
        assert [int(e.image[0, 0, 0]) + 256 * int(e.image[1, 0, 0]) for e in found] == [number_of(k) for k in EVERY]


def with_tars(ledger: Ledger) -> Ledger:
    """The same run as if it had been made with `--also webdataset`."""
    run = Path(str(ledger)) / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "also": ["webdataset"]}))
    ledger = Ledger.open(str(ledger))
    for shard in ledger.shards.values():
        with open(shard.url.removeprefix("file://"), "rb") as stream:  # noqa: PTH123
            raws = list(read_samples(stream, "a.tar"))
        rows = [row for row in ledger.rows(["shard", "label_map"]) if row["shard"] == shard.id]
        records = [LabelRecord("", shard.id, 0, "ok", label_map=row["label_map"]) for row in rows]
        for window in range(3):
            at = slice(4 * window, 4 * window + 4)
            ledger.writer.commit_extra(ShardTask(shard), window, as_webdataset(raws[at], records[at]))
    return ledger


def test_a_run_without_tars_says_so(ledger):
    with pytest.raises(ConfigError, match="without --also webdataset"):
        RunDataset(str(ledger), photos="webdataset")


@pytest.mark.parametrize("beside", [{"txt": b"x" * 700, "png": photo(5)}, {"png": photo(5), "seg.png": photo(6)}])
def test_single_samples_are_found_whatever_lies_beside_them(tmp_path, beside):
    ledger = make_run(tmp_path, [["x/" + "long" * 40, "b", "c"]], beside=beside)

    data: RunDataset[Example] = RunDataset(str(ledger))

    assert [int(data[place].image[0, 0, 0]) for place in (2, 0, 1)] == [5, 5, 5]
    assert data[0].key == "x/" + "long" * 40


@pytest.mark.parametrize("place", ["a.tar.gz", "folder/", "a.parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_every_kind_are_read(tmp_path, kind, place):
    names = [f"a{i}" for i in range(7)]
    photos = [photo(number_of(name)) for name in names]
    if place == "folder/":
        (tmp_path / "folder").mkdir()
        for name, data in zip(names, photos, strict=True):
            (tmp_path / "folder" / f"{name}.png").write_bytes(data)
    elif place == "a.parquet":
        cells = [{"bytes": data, "path": f"{name}.png"} for name, data in zip(names, photos, strict=True)]
        pq.write_table(pa.table({"image": cells}), tmp_path / place, row_group_size=3)
    else:
        tar = write_samples((name, {"png": data}) for name, data in zip(names, photos, strict=True))
        (tmp_path / place).write_bytes(gzip.compress(tar))
    shards = pin([str(tmp_path / place) + ("/" if place.endswith("/") else "")])
    ledger = Ledger.start(str(tmp_path / "run"), make_run(tmp_path / "other", [["x"]]).run, shards)
    labelled._commit(ledger, shards[0], 0, names, {}, label_map, ())

    data = kind(str(ledger))

    assert [example.key for example in data] == names
    assert [int(example.image[0, 0, 0]) for example in data] == list(range(7))
    if kind is RunDataset:
        assert [int(data[place].image[0, 0, 0]) for place in (6, 0, 3)] == [6, 0, 3]


def test_a_tar_that_is_begun_at_many_places_is_walked_once(ledger, monkeypatch):
    walked = []
    through = SourceImages.through

    def walk(self, window, first):
        walked.append(first > 99)
        return through(self, window, first)

    monkeypatch.setattr(SourceImages, "through", walk)

    assert sorted(keys(RunStream(str(ledger), shuffle=True))) == EVERY
    assert len(walked) == 9 + 3
    assert sum(walked) == 3, "once a shard"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_another_now_is_told(ledger, tmp_path, kind):
    data = kind(str(ledger))
    other = tmp_path / "in" / "s-0.tar"
    other.write_bytes(write_samples([(f"z{i}", {"png": photo(i)}) for i in range(10)]))

    with pytest.raises(ShardChanged, match=r"s-0\.tar"):
        next(iter(data))


# -- many readers


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_ranks_share_a_stream_out_and_lose_nothing(ledger, world_size, shuffle):
    streams: list[RunStream[Example]] = [
        RunStream(str(ledger), shuffle=shuffle, rank=rank, world_size=world_size, buffer=3)
        for rank in range(world_size)
    ]

    shares = [keys(stream) for stream in streams]

    assert sorted(key for share in shares for key in share) == EVERY
    assert shuffle or next(key for share in shares for key in share) == "a0"


def test_whole_shards_are_shared_out_where_there_are_enough(tmp_path):
    run = str(make_run(tmp_path, [[f"{shard}{i}" for i in range(9)] for shard in "abcdefgh"]))

    shares = [keys(RunStream(run, rank=rank, world_size=2)) for rank in range(2)]

    assert [{key[0] for key in share} for share in shares] == [set("aceg"), set("bdfh")]


def test_epochs_have_orders_of_their_own_that_the_seed_repeats(ledger):
    stream: RunStream[Example] = RunStream(str(ledger), shuffle=True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(keys(stream))

    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == EVERY
    assert keys(RunStream(str(ledger), shuffle=True, seed=4)) != orders[0]
    assert orders[0] != EVERY


def test_a_stream_that_was_left_early_begins_anew(ledger):
    stream: RunStream[Example] = RunStream(str(ledger))

    for _, example in zip(range(5), stream, strict=False):
        assert example.key in EVERY
    assert keys(stream) == EVERY


def test_a_map_style_dataset_in_spawned_workers(ledger):
    data = RunDataset(str(ledger), transform=key_of)
    sampler: DistributedSampler[str] = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    loader = DataLoader(
        data, batch_size=4, sampler=sampler, num_workers=2, multiprocessing_context="spawn", collate_fn=as_they_are
    )

    assert [key for batch in loader for key in batch] == EVERY[1::2]


def test_a_stream_in_spawned_workers_that_persist(ledger):
    stream = RunStream(str(ledger), shuffle=True, transform=key_of, rank=1, world_size=2)
    other = RunStream(str(ledger), shuffle=True, transform=key_of, rank=0, world_size=2)
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        other.set_epoch(epoch)
        epochs.append(list(loader))
        assert not Counter(epochs[-1]) - Counter(EVERY)

    assert epochs[0] != epochs[1]
    first = share_of(other, workers=2, epoch=0)
    assert sorted(epochs[0] + first) == EVERY


def share_of(stream: RunStream[str], workers: int, epoch: int) -> list[str]:
    """What a rank's workers read together, without starting them."""
    stream.set_epoch(epoch)
    units = stream._units(stream.world_size * workers)
    random.Random(f"{stream.seed} {epoch}").shuffle(units)
    found: list[str] = []
    for worker in range(workers):
        found += stream._examples(units[stream.rank * workers + worker :: stream.world_size * workers])
    return found


def test_ranks_are_taken_from_torch_itself(ledger, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        stream: RunStream[Example] = RunStream(str(ledger))
        assert (stream.rank, stream.world_size) == (0, 1)
    finally:
        distributed.destroy_process_group()
    with pytest.raises(ConfigError, match="ranks begin at 0"):
        RunStream(str(ledger), rank=2, world_size=2)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"photos": "tar"}, "possible are source, webdataset"),
        ({"side": "test"}, "possible are train, val"),
        ({"where": "qualty > 1"}, "no column 'qualty'"),
        ({"split": 95}, "between 0 and 1"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_no_sense_is_refused(ledger, kind, given, answer):
    with pytest.raises(ConfigError, match=answer):
        kind(str(ledger), **given)


# -- elsewhere


def test_a_fork_of_a_process_that_read_from_afar_is_refused(ledger, monkeypatch):
    data = RunDataset(str(ledger), transform=key_of)
    data.samples.ledger.store.local = False
    assert data[0] == "a0"
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(ConfigError, match="spawn"):
        data[1]


def test_both_read_a_run_on_object_storage(s3, tmp_path):
    import uuid

    from tests.support.processes import servers

    ledger = with_tars(make_run(tmp_path, KEYS))
    place = Store(f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}")
    for name, _ in ledger.store.list(""):
        place.put_new(name, ledger.store.get(name))
    compact(Ledger.open(place.url))

    for kind in KINDS:
        for photos in ("source", "webdataset"):
            assert [e.key for e in kind(place.url, photos=photos)] == EVERY
    loader = DataLoader(
        RunDataset(place.url, photos="webdataset", transform=key_of),
        batch_size=None,
        shuffle=True,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert sorted(loader) == EVERY


def test_the_example_trains_as_it_is_written(tmp_path, monkeypatch):
    """The lines of the README; only the run is another."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = "\n".join(written(readme, "from pipeline.datasets import RunStream"))
    ledger = make_run(tmp_path, KEYS, labels=lambda n: label_map(n) * (n % 10 > 2))  # three of ten are one segment
    losses = []
    backward = torch.Tensor.backward

    def noted(loss):
        losses.append(loss.item())
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", noted)

    assert "s3://bucket/labels/first" in code
    exec(compile(code.replace("s3://bucket/labels/first", str(ledger)), "example", "exec"), {})

    assert len(losses) == 3  # 21 samples of several segments, eight at a time


def written(readme, line):
    """The lines of the example that holds a line, without the empty ones."""
    example = next(block for block in readme.split("```") if line in block)
    return [line for line in example.splitlines()[1:] if line]


def test_samples_of_one_key_are_told_apart_in_the_tars_beside_the_labels(tmp_path):
    keys = ["a", "a", "a", "b", "a"]
    ledger = with_tars(make_run(tmp_path, [keys]))
    for kind in KINDS:
        found = list(kind(ledger.store.url, photos="webdataset"))
        assert [example.key for example in found] == keys
        assert [example.index for example in found] == list(range(5))
