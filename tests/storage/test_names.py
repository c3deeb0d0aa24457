"""Names of files: every sample has one, it is no other's on any file system, and readers find it again."""

import random
import tarfile
import unicodedata

import numpy as np
import pytest

from pipeline.datasets.selection import Selection
from pipeline.exports import export as hub
from pipeline.exports.export import export
from pipeline.inputs.tar.reading import read_samples
from pipeline.records import LabelRecord, RawSample
from pipeline.storage.names import Names, hashes_of, is_file_name
from pipeline.storage.object_store import Store
from pipeline.table.label_map import encode_label_map
from pipeline.worker.committer import as_webdataset
from tests.support.labelled import make_run

SHARD, OTHER = "s-1-0123456789ab", "s-2-ba9876543210"
EXTENSIONS = ("jpg", "png", "jpeg", "label_map.png", "segments.json")
UGLY = [
    *("a", "a.png/b", "a.png/b.jpg/c", "A", "A.PNG/b", "b", "b.label_map.png/x/y", "00000000", "annotations"),
    *("categories", "export", "_SUCCESS", "_export/000000", "images/train/a", "caf\u00e9", "cafe\u0301", "CAF\u00c9"),
    *(
        "stra\u00dfe",
        "STRASSE",
        f"a_{SHARD}_0",
        f"a_{SHARD}_0.png/b",
        f"A_{SHARD.upper()}_0",
        "dir./x",
        "dir/x",
        "tail ",
    ),
    *("", ".", "..", "../a", "/etc/passwd", "a//b", "a/", "./a", "a\0b", "a\nb", "a\\b", "C:a", "C:\\a", ".hidden"),
    *(
        "a.",
        "a.b",
        "a.jpg",
        "__a__",
        "__a/b__",
        "x" * 300,
        "\u00e9" * 120,
        "d/" * 400 + "x",
        "a" * 199,
        "\u98ce/\u666f",
    ),
    *("a/label_map", "CON", "a?b", "a*b", "a:b", "\U0001f408", "-", "~", "a b", "a+b", "a%2Fb"),
]


def named(keys):
    """The name of each key, the first half in one shard and the rest in another."""
    places = [(key, SHARD if n < len(keys) // 2 else OTHER, n) for n, key in enumerate(keys)]
    names = Names(*hashes_of(keys))
    return [names.of(*place) for place in places]


def assert_they_all_lie_side_by_side(names):
    """As files of any extensions, on a file system that knows neither case nor the form of an accent."""

    def folded(name):
        return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())

    owners: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        assert is_file_name(name)
        for extension in EXTENSIONS:
            file = f"{name}.{extension}"
            assert all(len(part.encode()) <= 255 for part in file.split("/"))
            assert owners.setdefault(folded(file), name) == name
            parts = folded(file).split("/")
            folders.update(("/".join(parts[:n]), name) for n in range(1, len(parts)))
    assert not owners.keys() & folders.keys()


def assert_readers_of_tars_find_them_again(names):
    assert [name.rpartition("/")[2].partition(".")[0] for name in names] == [n.rpartition("/")[2] for n in names]
    assert not [name for name in names if name.startswith("__") and name.endswith("__")]


@pytest.mark.parametrize("times", [1, 2])
def test_every_ugly_key_has_a_name_of_its_own(times):
    names = named(UGLY * times)
    assert len(set(names)) == len(names)
    assert_they_all_lie_side_by_side(names)
    assert_readers_of_tars_find_them_again(names)
    assert named(UGLY * times) == names


def test_random_keys_have_names_of_their_own():
    rng = random.Random(14)
    pieces = [
        "a",
        "A",
        "b",
        ".",
        "/",
        "png",
        "jpg",
        "_",
        " ",
        "e\u0301",
        "\u00e9",
        f"_{SHARD}_1",
        "label_map",
        "\\",
        "0",
    ]
    for _ in range(200):
        keys = ["".join(rng.choices(pieces, k=rng.randint(0, 5))) for _ in range(40)]
        names = named(keys)
        assert_they_all_lie_side_by_side(names)
        assert_readers_of_tars_find_them_again(names)


def test_keys_that_are_names_for_one_sample_alone_are_left_as_they_are():
    plain = [
        "a",
        "b",
        "cats/a",
        "cats/b",
        "dir.v1/a",
        "caf\u00e9",
        "a b",
        "2024-01-01_7",
        "\u98ce/\u666f",
        "x-0123456789a_1",
    ]
    assert named(plain) == plain


TAKEN_BY_TARS = [
    key for key in UGLY if key and "\n" not in key and "." not in key.rpartition("/")[2][1:] and key[-1] != "/"
]


@pytest.mark.parametrize("kind", hub.FORMATS)
def test_every_format_takes_every_sample_whatever_its_key(tmp_path, kind):
    with_photos = hub.FORMATS[kind].images
    keys = [k for k in TAKEN_BY_TARS if "\0" not in k and k[0] != "." and "__" not in k] if with_photos else UGLY
    ledger = make_run(tmp_path, [keys, ["a", "b"]])
    done = export(ledger, str(tmp_path / "out"), kind, Selection(), images=None if with_photos else False)

    assert (done.state.tally.images, done.state.tally.left_out) == (len(keys) + 2, {})
    store = Store(str(tmp_path / "out"))
    found = [name for name, _ in store.list("")]
    if kind == "png":
        assert sum(name.startswith("SegmentationObject/") for name in found) == len(keys) + 2
    if kind == "coco-panoptic":
        assert sum(name.endswith(".png") for name in found) == len(keys) + 2
    if kind == "webdataset":
        [tar] = (name for name in found if name.endswith(".tar"))
        assert len(list(read_samples(store.reader(tar), tar))) == len(keys) + 2


def rows(keys):
    labels = encode_label_map(np.zeros((4, 4), np.int32))
    raws = [RawSample(key, n, {"jpg" if n % 2 else "png": b"%d" % n}, None, 0) for n, key in enumerate(keys)]
    records = [
        LabelRecord(key, SHARD, n, "ok" if n % 3 else "undecodable", label_map=labels if n % 3 else None)
        for n, key in enumerate(keys)
    ]
    return raws, records


def test_two_samples_of_one_key_do_not_merge_in_a_tar_beside_the_labels(tmp_path):
    """As of `a.png` and `a.jpg` in a folder; the first of them has no label map."""
    keys = ["a", "a", "b", "__c__", ".d", "e.f", "", "b", "g\0", "plain/h"]
    (tmp_path / "t.tar").write_bytes(as_webdataset(*rows(keys)))
    with (tmp_path / "t.tar").open("rb") as stream:
        found = list(read_samples(stream, "t.tar"))
    assert [sample.members["jpg" if n % 2 else "png"] for n, sample in enumerate(found)] == [
        b"%d" % n for n in range(10)
    ]
    assert (found[-1].key, found[0].key) == ("plain/h", f"a_{SHARD}_0")
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert len(set(archive.getnames())) == len(archive.getnames())
