"""`reader` in run.json: a run goes on by the rules of what a sample is that it began with, 1 where it does not say."""

import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import ConfigError
from pipeline.inputs.folder.file_list import files_of
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.records import OK, READER
from pipeline.run.ledger import Ledger
from pipeline.run.open import reader_of
from pipeline.run.spec import Run
from pipeline.run.verify import audit
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, samples, write_shard


def without_reader(run):
    """run.json as 0.1.0 wrote it."""
    said = json.loads(run.to_json())
    del said["reader"]
    return json.dumps(said).encode()


def begun_by_0_1_0(tmp_path, patterns, **changes):
    """A run whose run.json and inputs are those of the first version, with nothing labelled yet."""
    output = tmp_path / "run"
    Ledger.start(str(output), a_run(reader=1, **changes), pin(patterns, reader=1))
    (output / "run.json").write_bytes(without_reader(a_run(**changes)))
    return str(output)


def finish(ledger):
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.unfinished()))
    return [fault for shard in audit(Ledger.open(ledger.store.url), full=True) for fault in shard.faults]


def test_a_run_that_does_not_say_is_of_reader_1_and_a_new_one_of_the_newest(tmp_path):
    assert Run.from_json(without_reader(a_run())).reader == 1
    assert Run.from_json(a_run().to_json()).reader == READER == 2
    assert reader_of(str(tmp_path / "none")) == READER


def test_every_shard_of_a_run_is_read_by_the_rules_of_the_run(tmp_path):
    pattern = str(write_shard(tmp_path / "s.tar", samples(10)))
    output = begun_by_0_1_0(tmp_path, [pattern])
    assert reader_of(output) == 1
    ledger = Ledger.start(output, a_run(reader=1), pin([pattern], reader_of(output)))
    assert {task.shard.reader for task in ledger.unfinished()} == {1}
    assert finish(ledger) == []
    assert {shard.reader for shard in Ledger.open(output).shards.values()} == {1}


def test_who_joins_with_shards_listed_by_other_rules_is_refused(tmp_path):
    pattern = str(write_shard(tmp_path / "s.tar", samples(1)))
    output = begun_by_0_1_0(tmp_path, [pattern])
    with pytest.raises(ConfigError, match="reader: 1 there, 2 here"):
        Ledger.start(output, a_run(), pin([pattern]))


def test_a_run_of_a_later_reader_is_refused_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_bytes(json.dumps({**json.loads(a_run().to_json()), "reader": 3}).encode())
    for opening in (reader_of, Ledger.open):
        with pytest.raises(ConfigError, match="rules 3, this version knows") as caught:
            opening(str(tmp_path / "run"))
        assert "\n" not in str(caught.value)


def a_folder(tmp_path):
    """Of everything that the readers tell apart."""
    (tmp_path / "store/more").mkdir(parents=True)
    (tmp_path / "store/1").write_bytes(jpeg(30))
    (tmp_path / "store/more/2.jpg").write_bytes(jpeg(31))
    names = ["a.jpg", "._a.jpg", ".hidden.png", "b.HEIC", "c.mpo", "d.jpg_large", "a.mask.png", "a.labels.png"]
    names += ["__MACOSX/._e.jpg", ".ipynb_checkpoints/f-checkpoint.png", "sub/g.PNG", "notes.txt", "Thumbs.db"]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg(number))
        os.utime(tmp_path / "in" / name, (1_000, 1_000))
    (tmp_path / "in/link.jpg").symlink_to("../store/1")
    (tmp_path / "in/more").symlink_to("../store/more")
    return str(tmp_path / "in")


FOLDER = {  # as version 0.1.0 and this one list it
    1: [
        *("._a.jpg", ".hidden.png", ".ipynb_checkpoints/f-checkpoint.png", "__MACOSX/._e.jpg", "a.jpg"),
        *("a.labels.png", "a.mask.png", "sub/g.PNG"),
    ],
    2: ["a.jpg", "b.HEIC", "c.mpo", "d.jpg_large", "link.jpg", "more/2.jpg", "sub/g.PNG"],
}

MEMBERS = ["p/._0.jpg", "p/0.jpg", "p/._0.json", "p/0.json", "p/._1.jpg", "p/1.jpg", "2.heic", "2.mask.png", "3.png"]
MEMBERS += ["3.heic", "Thumbs.db", ".x/4.jpg", "5.label_map.png", "6.jpg_large"]
TAR = {  # keys, and which member is the image
    1: [
        *(("p/", "_0.jpg"), ("p/0", "jpg"), ("p/", None), ("p/0", None), ("p/", "_1.jpg"), ("p/1", "jpg")),
        *(("2", "mask.png"), ("3", "png"), ("Thumbs", None), (".x/4", "jpg"), ("5", "label_map.png"), ("6", None)),
    ],
    2: [("p/0", "jpg"), ("p/1", "jpg"), ("2", None), ("3", None), ("5", None), ("6", "jpg_large")],
}


def a_tar(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number, name in enumerate(MEMBERS):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(number))
            archive.addfile(info, io.BytesIO(jpeg(number)))
    return str(tmp_path / "s.tar")


@pytest.mark.parametrize("reader", [1, 2])
def test_what_is_a_sample_of_a_folder(tmp_path, reader):
    [shard] = pin([a_folder(tmp_path)], reader)
    assert [file.name for file in files_of(shard)] == FOLDER[reader]


@pytest.mark.parametrize("reader", [1, 2])
def test_what_is_a_sample_of_a_tar(tmp_path, reader):
    [shard] = pin([a_tar(tmp_path)], reader)
    for whole in (True, False):
        assert [(raw.key, raw.image) for raw in read_shard(shard, whole=whole)] == TAR[reader]


def test_columns_of_a_parquet_file_that_hold_images(tmp_path):
    images = pa.array([jpeg(0)], pa.binary())
    columns = {"thumb": images, "image": images.dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    [shard] = pin([str(tmp_path / "s.parquet")], 1)
    assert [raw.image for raw in read_shard(shard)] == ["image"]  # the only one of plain bytes
    with pytest.raises(ConfigError, match=r"takes one of \['thumb'\]"):
        list(read_shard(shard, image_key="image"))
    [shard] = pin([str(tmp_path / "s.parquet")], 2)
    assert len(list(read_shard(shard, image_key="image"))) == 1


@pytest.mark.parametrize("make", [a_folder, a_tar])
def test_a_run_that_0_1_0_began_is_finished_with_the_samples_it_pinned(tmp_path, make):
    pattern = make(tmp_path)
    output = begun_by_0_1_0(tmp_path, [pattern])
    ledger = Ledger.open(output)
    task = next(ledger.unfinished())
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run([task]))
    rows = list(ledger.rows())
    window = sorted((tmp_path / "run/labels").glob("*.parquet"))[0]
    window.unlink()
    again = Ledger.start(output, a_run(reader=1), pin([pattern], reader_of(output)), extend=True)
    assert len(again.shards) == 1, "nothing came to it by another reading"
    assert finish(again) == []
    assert list(again.rows()) == rows
    expected = [key for key, _ in TAR[1]] if make is a_tar else [name.rpartition(".")[0] for name in FOLDER[1]]
    assert len(rows) == len(expected)
    assert [row["key"] for row in rows if row["status"] == OK and "." not in row["key"]] == [
        *(["p/", "p/0", "p/", "p/1", "2", "3", "5"] if make is a_tar else ["a", "a", "a", "sub/g"])
    ]
