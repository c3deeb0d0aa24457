import json
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from diffseg.cut import components
from diffseg.types import IGNORE
from pipeline.datasets.selection import Selection
from pipeline.exports.export import export
from pipeline.exports.rle import encode
from tests.support.labelled import at_source, label_map, make_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # it would rather have OpenCV
    import supervision


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder

EVERYTHING = Selection()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def exported(tmp_path, kind, selection=EVERYTHING, **run):
    ledger = make_run(tmp_path, **run)
    export(ledger, str(tmp_path / "out"), kind, selection)
    return ledger


def opened(path, capsys):
    coco = COCO(str(path))
    capsys.readouterr()
    return coco


@pytest.mark.parametrize(
    "regions",
    [
        np.zeros((3, 4), np.int32),
        np.array([[0, 1], [1, 0]], np.int32),
        np.array([[IGNORE, 0, 0], [1, IGNORE, 0]], np.int32),
        np.random.default_rng(0).integers(-1, 6, (37, 53)).astype(np.int32),
        np.array([[2, 2, 0]], np.int32),
    ],
)
def test_run_lengths_are_those_of_pycocotools_itself(regions):
    found = list(encode(regions))

    assert len(found) == regions.max() + 1
    for number, (rle, area) in enumerate(found):
        mask = np.asfortranarray(regions == number, dtype=np.uint8)
        assert rle["counts"] == masks.encode(mask)["counts"].decode()
        assert rle["size"] == list(regions.shape)
        assert area == mask.sum()


def test_components_touch_along_edges_and_belong_to_one_id():
    labels = np.array([[0, 1, 0], [1, 0, 0], [IGNORE, 0, 1]], np.int32)

    regions, owners = components(labels)

    assert owners.tolist() == [0, 0, 1, 1, 1]
    assert (regions == IGNORE).sum() == 1
    for number, owner in enumerate(owners):
        assert set(labels[regions == number]) == {owner}
    assert regions[0, 2] == regions[1, 1] == regions[2, 1] != regions[0, 0]


def test_pycocotools_reads_segments_that_add_up_to_the_label_map(tmp_path, out, capsys):
    exported(tmp_path, "coco-segments")
    coco = opened(out / "annotations" / "instances_train.json", capsys)

    assert [image["id"] for image in coco.dataset["images"]] == list(range(1, 10))
    assert [image["file_name"] for image in coco.dataset["images"]] == [f"{key}.png" for key in "abcdefghi"]
    for image, number in zip(coco.dataset["images"], [*range(6), *range(100, 103)], strict=True):
        again = np.full((image["height"], image["width"]), IGNORE, np.int32)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation["area"] == masks.area(annotation["segmentation"])
            assert masks.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
            assert (again[mask] == IGNORE).all()
            assert len(components(np.where(mask, 0, IGNORE))[1]) == 1
            again[mask] = annotation["segment_id"]
        assert (again == at_source(label_map(number))).all()
    assert [category["name"] for category in coco.dataset["categories"]] == ["object"]
    ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_supervision_loads_the_segments_with_their_photos(tmp_path, out):
    exported(tmp_path, "coco-segments")

    read = supervision.DetectionDataset.from_coco(
        str(out / "images" / "train"), str(out / "annotations" / "instances_train.json"), force_masks=True
    )

    assert len(read) == 9
    for (path, image, detections), number in zip(read, [*range(6), *range(100, 103)], strict=True):
        labels = at_source(label_map(number))
        assert image[0, 0].tolist() == [7, 0, number], path  # blue first
        assert (np.asarray(detections.mask).any(0) == (labels != IGNORE)).all()
        assert len(detections) == len(components(labels)[1])


def test_panoptic_pictures_say_what_their_annotations_say(tmp_path, out):
    exported(tmp_path, "coco-panoptic")
    document = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    images = {image["id"]: image for image in document["images"]}

    assert {"id": 1, "name": "object", "supercategory": "object", "isthing": 1} in document["categories"]
    assert len(document["annotations"]) == len(images) == 9
    for annotation, number in zip(document["annotations"], [*range(6), *range(100, 103)], strict=True):
        with Image.open(out / "annotations" / "panoptic_train" / annotation["file_name"]) as png:
            ids = np.asarray(png).astype(int) @ [1, 256, 65536]
        assert ids.shape == (images[annotation["image_id"]]["height"], images[annotation["image_id"]]["width"])
        assert (ids - 1 == at_source(label_map(number))).all()
        assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids)) - {0}
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
            assert segment["iscrowd"] == 0


def test_panoptic_ids_beyond_255_use_the_second_channel(tmp_path, out):
    many = np.minimum(np.arange(18 * 24, dtype=np.int32), 299).reshape(18, 24)
    exported(tmp_path, "coco-panoptic", keys=[["a"]], labels=lambda _: many)

    with Image.open(out / "annotations" / "panoptic_train" / "a.png") as png:
        assert (np.asarray(png).astype(int) @ [1, 256, 65536] - 1 == many).all()


def test_an_export_without_photos_has_annotations_alone(tmp_path, out):
    ledger = make_run(tmp_path)
    (tmp_path / "in" / "s-0.tar").unlink()

    export(ledger, str(out), "coco-segments", Selection(), images=False)

    assert not (out / "images").exists()
    assert json.loads((out / "annotations" / "instances_train.json").read_text())["images"][0]["file_name"] == "a.jpg"


def test_small_components_and_doubtful_segments_are_left_out(tmp_path, out):
    exported(tmp_path, "coco-segments", Selection(min_area=0.1, min_score=0.7))
    document = json.loads((out / "annotations" / "instances_train.json").read_text())

    assert document["annotations"]
    assert min(annotation["area"] for annotation in document["annotations"]) >= 0.1 * 18 * 24
    assert {annotation["score"] for annotation in document["annotations"]} <= {1.0, 0.875, 0.75}


def test_a_document_without_annotations_is_still_one(tmp_path, out, capsys):
    exported(tmp_path, "coco-segments", Selection(min_area=0.99))

    assert opened(out / "annotations" / "instances_train.json", capsys).getAnnIds() == []
