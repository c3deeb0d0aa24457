"""Reading truth: published layouts in miniature, shards, folders, and what is wrong with them."""

import io

import numpy as np
import pytest
from PIL import Image

from diffseg.types import IGNORE
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import PROTOCOLS, protocol_named
from pipeline.evaluation.truth import decode_truth, open_truth
from pipeline.inputs.tar.writing import write_samples
from tests.support.truths import lay, png

REGIONS = PROTOCOLS["regions"]
COCO = PROTOCOLS["coco-stuff-27"]
CITYSCAPES = PROTOCOLS["cityscapes-27"]
COCO_CLASSES = dict(COCO.classes or {})


def shard(path, *samples):
    path.write_bytes(write_samples(samples))
    return str(path)


def test_every_fine_category_has_one_coarse_class():
    fine = [category for members in COCO_CLASSES.values() for category in members]

    assert len(COCO_CLASSES) == 27
    assert sorted(fine) == list(range(182))


@pytest.mark.parametrize(
    ("category_id", "coarse"),
    [(1, "person"), (3, "vehicle"), (18, "animal"), (124, "plant"), (155, "water"), (157, "sky"), (149, "ground")],
)
def test_well_known_categories_land_where_the_papers_have_them(category_id, coarse):
    truth = COCO.truth_of(np.array([[category_id - 1]], np.uint8))  # label maps store ids less one

    assert list(COCO_CLASSES)[truth[0, 0]] == coarse


def test_coco_classes_stand_in_the_order_of_the_benchmark():
    order = {
        "electronic": 0,
        "animal": 7,
        "person": 9,
        "vehicle": 11,
        "ceiling": 12,
        "wall": 18,
        "sky": 23,
        "water": 26,
    }

    assert {name: list(COCO_CLASSES).index(name) for name in order} == order


def test_cityscapes_label_ids_become_27_classes_and_the_rest_is_ignored():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)

    truth = CITYSCAPES.truth_of(values).ravel()

    assert truth[7:34].tolist() == list(range(27))
    assert set(truth[:7]) | set(truth[34:]) == {IGNORE}
    assert [list(CITYSCAPES.classes or ())[truth[i]] for i in (7, 11, 23, 26, 33)] == [
        "road",
        "building",
        "sky",
        "car",
        "bicycle",
    ]


def test_unlabelled_pixels_of_coco_are_ignored():
    assert decode_truth(png(np.array([[0, 255, 182]], np.uint8)), COCO).tolist() == [[9, IGNORE, IGNORE]]


@pytest.mark.parametrize(
    ("labels", "photos"), [("annotation_val2017", "val2017"), ("annotations/val2017", "images/val2017")]
)
def test_coco_is_read_by_its_curated_list_in_either_layout(tmp_path, labels, photos):
    names = [f"{number:012d}" for number in (139, 724, 785)]
    files = {f"{labels}/{name}.png": png(np.full((4, 4), 7, np.uint8)) for name in names}
    files |= {f"{photos}/{name}.jpg": name.encode() for name in names}
    files |= {f"curated/val2017/{COCO.listed}": f"{names[2]}\n{names[0]}\n000000000872\n".encode()}

    samples = list(open_truth(lay(tmp_path, files), COCO))

    assert [(sample.key, sample.image) for sample in samples] == [
        (names[0], names[0].encode()),
        (names[2], names[2].encode()),
        ("000000000872", None),  # listed, but nowhere: not to be lost without a word
    ]
    assert [len(sample.label_maps) for sample in samples] == [1, 1, 0]


def test_coco_without_a_list_beside_it_is_measured_on_the_published_one(tmp_path):
    names = ("000000000139", "000000000140", "000000581615")  # the first, none and the last of it
    folder = lay(tmp_path, {f"annotations/val2017/{name}.png": png(np.zeros((2, 2), np.uint8)) for name in names})

    samples = list(open_truth(folder, COCO))

    assert len(samples) == 2175
    assert [sample.key for sample in samples if sample.label_maps] == [names[0], names[2]]


def test_cityscapes_is_read_from_its_own_layout(tmp_path):
    files = {}
    for city, frame in (("munster", 3), ("lindau", 1)):
        stem = f"{city}_{frame:06d}_000019"
        files[f"gtFine/val/{city}/{stem}_gtFine_labelIds.png"] = png(np.full((2, 4), 26, np.uint8))
        files[f"gtFine/val/{city}/{stem}_gtFine_instanceIds.png"] = png(np.full((2, 4), 26001, np.uint16))
        files[f"leftImg8bit/val/{city}/{stem}_leftImg8bit.png"] = stem.encode()
    files["gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"] = b"not to be read"

    samples = list(open_truth(lay(tmp_path, files), CITYSCAPES))

    assert [sample.key for sample in samples] == ["lindau_000001_000019", "munster_000003_000019"]
    assert samples[0].image == b"lindau_000001_000019"
    assert decode_truth(samples[0].label_maps[0], CITYSCAPES).tolist() == [[19] * 4] * 2


def test_a_run_on_cityscapes_names_its_samples_by_the_photo():
    assert CITYSCAPES.key_of("leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit") == "lindau_000001_000019"
    assert CITYSCAPES.key_of("lindau_000001_000019") == "lindau_000001_000019"


def test_a_shard_gives_every_annotator_in_order(tmp_path):
    annotators = {f"seg{i}.png": png(np.full((2, 2), i, np.uint8)) for i in (10, 0, 2)}
    url = shard(tmp_path / "a.tar", ("x/7", {"jpg": b"photo", "json": b"{}", **annotators}))

    [sample] = open_truth(url, REGIONS)

    assert sample.key == "x/7"
    assert sample.image == b"photo"
    assert [decode_truth(data, REGIONS)[0, 0] for data in sample.label_maps] == [0, 2, 10]


@pytest.mark.parametrize(
    ("members", "image", "label_map"),
    [
        ({"jpg": b"J", "png": b"P"}, b"J", b"P"),
        ({"png": b"P", "seg.png": b"S"}, b"P", b"S"),
        ({"png": b"P"}, None, b"P"),
    ],
)
def test_which_png_is_the_label_map(tmp_path, members, image, label_map):
    [sample] = open_truth(shard(tmp_path / "a.tar", ("7", members)), REGIONS)

    assert (sample.image, sample.label_maps) == (image, (label_map,))


def test_one_of_several_pngs_can_be_named(tmp_path):
    members = {"jpg": b"J", "depth.png": b"D", "seg.png": b"S"}

    [sample] = open_truth(shard(tmp_path / "a.tar", ("7", members)), REGIONS, member="seg.png")

    assert sample.label_maps == (b"S",)


def test_shards_and_a_list_of_keys(tmp_path):
    url = shard(tmp_path / "a.tar", *((key, {"png": key.encode()}) for key in ("1", "2", "3")))
    (tmp_path / "wanted.txt").write_text("3\n\n1\n")

    assert [sample.key for sample in open_truth(url, REGIONS, listed=str(tmp_path / "wanted.txt"))] == ["1", "3"]


def test_a_folder_pairs_photos_and_label_maps_by_name(tmp_path):
    files = {
        "images/7.jpg": b"J7",
        "labels/7.png": b"S7",
        "labels/8.png": b"S8",
        "images/9.jpg": b"J9",
        "notes.md": b"",
    }

    samples = list(open_truth(lay(tmp_path, files), REGIONS))

    assert [(sample.key, sample.image, sample.label_maps) for sample in samples] == [
        ("7", b"J7", (b"S7",)),
        ("8", None, (b"S8",)),
    ]


def test_a_folder_of_truth_may_have_any_name_and_files_that_systems_leave(tmp_path):
    folder = tmp_path / "truth [v2] {raw}"
    folder.mkdir()
    for name in ("7.jpg", "7.png", "._7.png", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"1")
    assert [sample.key for sample in open_truth(str(folder), protocol_named("regions"))] == ["7"]


def test_a_folder_where_two_files_claim_one_place_is_refused(tmp_path):
    folder = lay(tmp_path, {"images/7.png": b"", "labels/7.png": b""})

    with pytest.raises(ConfigError, match=r"images/7.png and labels/7.png are both '7.png'"):
        open_truth(folder, REGIONS)


@pytest.mark.parametrize(
    ("files", "protocol", "message"),
    [
        ({}, REGIONS, "no such folder, or nothing in it"),
        ({"a.tar": b""}, REGIONS, r"a folder of shards; name them"),
        ({"a.jpg": b""}, REGIONS, "no label maps of regions among 1 files such as a.jpg; wanted are KEY.png"),
        ({"gtFine/val/x/y_gtFine_color.png": b""}, CITYSCAPES, "no label maps of cityscapes-27 among 1 files"),
    ],
)
def test_a_folder_without_label_maps_says_what_is_wrong(tmp_path, files, protocol, message):
    with pytest.raises(ConfigError, match=message):
        open_truth(lay(tmp_path, files), protocol)


@pytest.mark.parametrize("text", [None, "\n\n"])
def test_a_list_that_lists_nothing_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)

    with pytest.raises(ConfigError, match="list of keys"):
        open_truth(shard(tmp_path / "a.tar", ("1", {"png": b""})), REGIONS, listed=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a png", "an unreadable label map"),
        (png(np.zeros((2, 2, 3), np.uint8)), "one channel of whole numbers, this one is RGB"),
        (png(np.zeros((2, 2), np.uint8))[:40], "an unreadable label map"),
    ],
)
def test_bytes_that_are_no_label_map_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_truth(data, REGIONS)


@pytest.mark.parametrize("top", [254, 255, 256, 40_000, 65_535])
def test_region_ids_of_8_and_16_bit_are_kept(top):
    values = np.array([[0, top]], np.uint8 if top < 256 else np.uint16)

    assert decode_truth(png(values), REGIONS).tolist() == [[0, top]]


def test_a_palette_is_read_by_its_indices():
    image = Image.fromarray(np.array([[0, 5, 255]], np.uint8), "L")
    image.putpalette([0, 0, 0] * 256)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")

    assert decode_truth(buffer.getvalue(), protocol_named("regions", classes=21, ignore=(255,))).tolist() == [
        [0, 5, -1]
    ]


def test_classes_of_ones_own():
    protocol = protocol_named("regions", classes=4, ignore=(0,))

    assert protocol.num_classes == 3
    assert protocol.truth_of(np.array([[0, 1, 2, 3, 4, 255]])).tolist() == [[IGNORE, 0, 1, 2, IGNORE, IGNORE]]
    assert protocol_named("regions", ignore=(255,)).truth_of(np.array([[3, 255]])).tolist() == [[3, IGNORE]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("voc",), "no protocol 'voc'; there are regions, coco-stuff-27, cityscapes-27"),
        (("cityscapes-27", 19), "cityscapes-27 has its own"),
        (("regions", 0), "at least 1, got 0"),
        (("regions", 1, (0,)), "leaves none of 1 classes"),
    ],
)
def test_a_protocol_that_is_none_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        protocol_named(*arguments)
