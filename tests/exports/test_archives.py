import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping

import numpy as np
import pytest
from pycocotools import mask as masks

from diffseg.types import IGNORE
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError
from pipeline.exports import export as hub
from pipeline.exports.archives import webdataset as as_webdataset
from pipeline.exports.export import export
from pipeline.inputs.tar.reading import read_samples
from pipeline.table.label_map import decode_label_map
from tests.support.labelled import at_source, label_map, make_run, photo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder

NUMBERS = dict(zip("abcdefghi", [*range(6), *range(100, 103)], strict=True))
READ_AS_USERS_DO = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy, webdataset
read = webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("pil")
print(json.dumps([
    {
        "key": sample["__key__"],
        "photo": sample["png"].getpixel((0, 0)),
        "labels": numpy.asarray(sample["label_map.png"].convert("L")).tolist(),
        "segments": sample["segments.json"]["segments"],
    }
    for sample in read
]))
"""


def test_webdataset_reads_photos_and_label_maps_with_its_unsafe_decoders_off(tmp_path):
    export(make_run(tmp_path), str(tmp_path / "out"), "webdataset", Selection())

    done = subprocess.run(
        [sys.executable, "-c", READ_AS_USERS_DO, str(tmp_path / "out" / "train-000000.tar")],
        env={**os.environ, "WDS_SECURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    read = {sample["key"]: sample for sample in json.loads(done.stdout)}
    assert list(read) == list(NUMBERS)
    for key, number in NUMBERS.items():
        labels = at_source(label_map(number))
        assert read[key]["photo"] == [number, 0, 7]
        assert (np.array(read[key]["labels"]) == np.where(labels == IGNORE, 255, labels)).all()
        assert [segment["area"] for segment in read[key]["segments"]] == np.bincount(labels[labels >= 0]).tolist()


def test_samples_keep_all_their_members_and_become_several_shards(tmp_path, monkeypatch):
    monkeypatch.setitem(hub.FORMATS, "webdataset", hub.Format(as_webdataset, part=4, images=True, whole=True))
    export(make_run(tmp_path), str(tmp_path / "out"), "webdataset", Selection())

    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"train-{part:06}.tar" for part in range(3)]
    found: dict[str, Mapping[str, bytes]] = {}
    for shard in shards:
        with shard.open("rb") as stream:
            found |= {sample.key: sample.members for sample in read_samples(stream, shard.name, image_key="png")}
    assert list(found) == list(NUMBERS)
    assert found["h"]["png"] == photo(101)
    assert (decode_label_map(found["h"]["label_map.png"]) == at_source(label_map(101))).all()


@pytest.mark.parametrize(
    ("members", "there"),
    [
        (True, {"caption.txt", "seg.png", "jpg", "label_map.png", "segments.json"}),
        (False, {"jpg", "label_map.png", "segments.json"}),
    ],
)
def test_what_lay_beside_a_photo_comes_along_unless_it_is_not_wanted(tmp_path, members, there):
    beside = {"caption.txt": b"a cat", "seg.png": photo(3), "jpg": photo(0)}
    ledger = make_run(tmp_path, [["a"]], beside=beside)

    export(ledger, str(tmp_path / "out"), "webdataset", Selection(), members=members)

    with (tmp_path / "out" / "train-000000.tar").open("rb") as stream:
        [sample] = read_samples(stream, "train.tar", image_key="jpg")
    assert sample.members.keys() == there
    assert sample.members["jpg"] == photo(0)


def test_masks_of_sa1b_add_up_to_the_label_map(tmp_path):
    export(make_run(tmp_path), str(tmp_path / "out"), "sa1b", Selection())

    with tarfile.open(tmp_path / "out" / "sa_train_000000.tar") as archive:
        files = {info.name: archive.extractfile(info) for info in archive}
        members = {name: file.read() for name, file in files.items() if file is not None}
        assert members.keys() == files.keys()
    assert sorted(members) == sorted(f"sa_{n}.{extension}" for n in range(1, 10) for extension in ("png", "json"))
    for place, number in enumerate(NUMBERS.values(), start=1):
        said = json.loads(members[f"sa_{place}.json"])
        assert members[said["image"]["file_name"]] == photo(number)
        labels = at_source(label_map(number))
        assert (said["image"]["height"], said["image"]["width"]) == labels.shape
        assert [masks.area(a["segmentation"]) for a in said["annotations"]] == [a["area"] for a in said["annotations"]]
        again = np.full(labels.shape, IGNORE)
        for segment, annotation in enumerate(said["annotations"]):
            mask = masks.decode(annotation["segmentation"]).astype(bool)
            [[x, y]] = annotation["point_coords"]
            assert mask[int(y), int(x)]
            assert masks.toBbox([annotation["segmentation"]])[0].tolist() == annotation["bbox"]
            again[mask] = segment
        assert (again == labels).all()


def test_a_format_without_a_place_for_other_members_says_so(tmp_path):
    with pytest.raises(ConfigError, match="sa1b has no place for them"):
        export(make_run(tmp_path), str(tmp_path / "out"), "sa1b", Selection(), members=True)


@pytest.mark.parametrize("kind", ["webdataset", "sa1b", "huggingface"])
def test_formats_that_hold_the_photos_cannot_do_without(tmp_path, kind):
    with pytest.raises(ConfigError, match=f"--no-images: photos are part of {kind}"):
        export(make_run(tmp_path), str(tmp_path / "out"), kind, Selection(), images=False)
