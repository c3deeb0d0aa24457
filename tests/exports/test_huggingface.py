import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffseg.types import IGNORE
from pipeline.datasets.selection import Selection
from pipeline.exports import archives
from pipeline.exports import export as hub
from pipeline.exports.export import export
from tests.support.labelled import at_source, label_map, make_run

NUMBERS = dict(zip("abcdefghi", [*range(6), *range(100, 103)], strict=True))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Hugging Face's `load_dataset` of the folder of an export, off line."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return lambda *given, **named: datasets.load_dataset(*given, **named, cache_dir=str(tmp_path / "cache"))


def test_load_dataset_gives_photos_label_maps_and_segments(tmp_path, load):
    export(make_run(tmp_path), str(tmp_path / "out"), "huggingface", Selection())

    read = load(str(tmp_path / "out"))["train"]

    assert read["key"][:] == list(NUMBERS)
    for row, number in zip(read, NUMBERS.values(), strict=True):
        labels = at_source(label_map(number))
        assert row["image"].getpixel((0, 0)) == (number, 0, 7)
        assert (np.asarray(row["label_map"]) == np.where(labels == IGNORE, 255, labels)).all()
        assert (row["height"], row["width"]) == labels.shape
        assert [segment["area"] for segment in row["segments"]] == np.bincount(labels[labels >= 0]).tolist()
        assert [segment["score"] for segment in row["segments"]] == [1 - id_ / 8 for id_ in range(5)]


def test_load_dataset_finds_both_sides_of_a_split_in_all_parts(tmp_path, load, monkeypatch):
    monkeypatch.setitem(hub.FORMATS, "huggingface", hub.Format(archives.parquet, part=4, images=True))
    selection = Selection(split=0.5)
    export(make_run(tmp_path), str(tmp_path / "out"), "huggingface", selection)

    read = load(str(tmp_path / "out"))

    assert read["train"]["key"][:] == [key for key in NUMBERS if selection.side(key) == "train"]
    assert read["validation"]["key"][:] == [key for key in NUMBERS if selection.side(key) == "val"]


def test_load_dataset_reads_the_webdataset_export_too(tmp_path, load):
    export(make_run(tmp_path), str(tmp_path / "out"), "webdataset", Selection(), members=False)

    read = load("webdataset", data_files={"train": str(tmp_path / "out" / "*.tar")})["train"]

    for row, (key, number) in zip(read, NUMBERS.items(), strict=True):
        labels = at_source(label_map(number))
        assert row["__key__"] == key
        assert (np.asarray(row["label_map.png"]) == np.where(labels == IGNORE, 255, labels)).all()


def test_a_row_group_holds_few_rows_and_the_file_says_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.exports.archives.ROWS", 4)
    export(make_run(tmp_path), str(tmp_path / "out"), "huggingface", Selection())

    with pq.ParquetFile(tmp_path / "out" / "data" / "train-00000.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)] == [4, 4, 1]
        said = json.loads(file.schema_arrow.metadata[b"huggingface"])
    assert said["info"]["features"]["image"] == {"_type": "Image"}
