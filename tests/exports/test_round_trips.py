"""Every export of a real run, read by the tools it is made for: the run's label maps come back pixel for pixel."""

import json
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from diffseg.cut import components
from diffseg.draw import resize_labels
from diffseg.types import IGNORE
from jobs.shared import cli
from pipeline.exports.export import FORMATS
from pipeline.inputs.tar.reading import read_samples
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map

PHOTOS = 3
DATUMARO = os.environ.get(
    "DATUMARO_PYTHON", sys.executable
)  # a Python that has datumaro, which brings OpenCV and pandas

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of pycocotools' decoder
]


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Ledger:
    """The first photos of the shards beside the project, labelled by the embedded model."""
    folder = tmp_path_factory.mktemp("real")
    with (photos / "bsds-train-00000.tar").open("rb") as stream:
        samples = [(raw.key, {"jpg": raw.members["jpg"]}) for raw in islice(read_samples(stream, "a.tar"), PHOTOS)]
    (folder / "photos.tar").write_bytes(write_samples(samples))
    command = ["label", str(folder / "photos.tar"), "--model", "tiny", "--workers", "0", "--window", "2"]
    assert cli.run([*command, "--output", str(folder / "run")]) == 0
    return Ledger.open(str(folder / "run"))


@pytest.fixture(scope="module")
def truth(run) -> dict[str, np.ndarray]:
    """The run's label maps at source size, by key."""
    return {
        row["key"]: resize_labels(decode_label_map(row["label_map"]), (row["height"], row["width"]))
        for row in run.rows()
    }


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory) -> dict[str, Path]:
    """Every format, by the command."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in FORMATS:
        assert cli.run(["export", str(run), "--format", kind, "--output", str(folder / kind)]) == 0
    return {kind: folder / kind for kind in FORMATS}


def with_ignore(png: np.ndarray) -> np.ndarray:
    """Ids as a PNG holds them, as a run has them."""
    return np.where(png == (255 if png.dtype == np.uint8 else 65535), IGNORE, png.astype(np.int32))


def same(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> bool:
    return found.keys() == truth.keys() and all((found[key] == truth[key]).all() for key in truth)


def test_the_run_has_something_to_lose(truth):
    assert len(truth) == PHOTOS
    assert min(labels.max() for labels in truth.values()) >= 2
    assert {labels.shape for labels in truth.values()} <= {(321, 481), (481, 321)}


def test_pycocotools(exports, truth, capsys):
    coco = COCO(str(exports["coco-segments"] / "annotations" / "instances_train.json"))
    found = {}
    for image in coco.dataset["images"]:
        labels = np.full((image["height"], image["width"]), IGNORE, np.int32)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation["area"]
            assert (labels[mask] == IGNORE).all()
            labels[mask] = annotation["segment_id"]
        found[image["key"]] = labels
    assert same(found, truth)


def test_the_rules_of_the_panoptic_format(exports, truth):
    document = json.loads((exports["coco-panoptic"] / "annotations" / "panoptic_train.json").read_text())
    images = {image["id"]: image for image in document["images"]}
    known = {category["id"] for category in document["categories"]}
    found = {}
    for annotation in document["annotations"]:
        with Image.open(exports["coco-panoptic"] / "annotations" / "panoptic_train" / annotation["file_name"]) as png:
            ids = np.asarray(png).astype(np.int32) @ [1, 256, 65536]
        there, areas = np.unique(ids[ids > 0], return_counts=True)
        assert {s["id"]: s["area"] for s in annotation["segments_info"]} == dict(zip(there, areas, strict=True))
        assert {s["category_id"] for s in annotation["segments_info"]} <= known
        found[images[annotation["image_id"]]["key"]] = ids - 1
    assert same(found, truth)


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return lambda *given, **named: datasets.load_dataset(*given, **named, cache_dir=str(tmp_path / "cache"))["train"]


def test_load_dataset_on_parquet(exports, truth, load):
    read = load(str(exports["huggingface"]))

    assert same({row["key"]: with_ignore(np.asarray(row["label_map"])) for row in read}, truth)
    assert all(row["image"].size == row["label_map"].size for row in read)


def test_load_dataset_on_webdataset(exports, truth, load):
    read = load("webdataset", data_files={"train": str(exports["webdataset"] / "*.tar")})

    assert same({row["__key__"]: with_ignore(np.asarray(row["label_map.png"])) for row in read}, truth)


READ_TARS = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy, webdataset
read = webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("pil")
numpy.savez(sys.argv[2], **{sample["__key__"]: numpy.asarray(sample["label_map.png"].convert("L")) for sample in read})
"""


def test_webdataset_with_its_unsafe_decoders_off(exports, truth, tmp_path):
    command = [sys.executable, "-c", READ_TARS, str(exports["webdataset"] / "train-000000.tar"), str(tmp_path / "read")]
    subprocess.run(command, env={**os.environ, "WDS_SECURE": "1"}, check=True)

    with np.load(tmp_path / "read.npz") as read:
        assert same({key: with_ignore(read[key]) for key in read}, truth)


def test_supervision(exports, truth):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it would rather have OpenCV
        supervision = pytest.importorskip("supervision")
        folder = exports["coco-segments"]
        read = supervision.DetectionDataset.from_coco(
            str(folder / "images" / "train"), str(folder / "annotations" / "instances_train.json"), force_masks=True
        )
        found = {Path(path).stem: np.asarray(detections.mask) for path, _, detections in read}

    assert found.keys() == truth.keys()
    for key, masks in found.items():
        assert are_components(masks, truth[key])


def are_components(masks: np.ndarray, labels: np.ndarray) -> bool:
    """Whether masks [K, H, W] are the connected components of a label map, each pixel in its own alone."""
    numbers, owners = components(labels)
    painted = np.full(labels.shape, IGNORE, np.int32)
    for number, mask in enumerate(masks):
        painted[mask] = number
    pairs = np.unique(np.stack([painted.ravel(), numbers.ravel()]), axis=1)
    return len(masks) == len(owners) == masks.any((1, 2)).sum() and bool(
        (masks.sum(0) == (labels != IGNORE)).all() and pairs.shape[1] == len(np.unique(numbers))
    )


TO_CVAT = """
import sys, datumaro
datumaro.Dataset.import_from(sys.argv[1], "coco_instances").export(sys.argv[2], "cvat", save_media=True)
"""


def test_datumaro_turns_segments_into_the_format_of_cvat(exports, truth, tmp_path):
    if not os.environ.get("DATUMARO_PYTHON") and not find_spec("datumaro"):
        pytest.skip("datumaro is not installed here, and DATUMARO_PYTHON names no Python that has it")
    command = [DATUMARO, "-W", "ignore", "-c", TO_CVAT, str(exports["coco-segments"]), str(tmp_path / "cvat")]
    subprocess.run(command, check=True, capture_output=True)

    images = ElementTree.parse(tmp_path / "cvat" / "train.xml").getroot().findall("image")
    assert {Path(image.attrib["name"]).stem for image in images} == truth.keys()
    for image in images:
        labels = truth[Path(image.attrib["name"]).stem]
        assert (tmp_path / "cvat" / "images" / image.attrib["name"]).is_file()
        assert are_components(np.stack([cvat_mask(mask, labels.shape) for mask in image.findall("mask")]), labels)


def cvat_mask(element: ElementTree.Element, shape: tuple[int, int]) -> np.ndarray:
    """Run lengths row by row inside a box, background first."""
    left, top, width, height = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
    lengths = [int(length) for length in element.attrib["rle"].split(",")]
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = values.reshape(height, width)
    return mask


def test_pillow(exports, truth):
    found = {}
    for path in (exports["png"] / "SegmentationObject").iterdir():
        with Image.open(path) as picture:
            found[path.stem] = with_ignore(np.asarray(picture))
        with Image.open(exports["png"] / "JPEGImages" / f"{path.stem}.jpg") as photo:
            assert photo.size == found[path.stem].shape[::-1]
    assert same(found, truth)


def test_masks_of_sa1b(exports, truth):
    from pycocotools import mask as masks

    found = {}
    with (exports["sa1b"] / "sa_train_000000.tar").open("rb") as stream:
        for raw in read_samples(stream, "a.tar"):
            said = json.loads(raw.members["json"])
            labels = np.full((said["image"]["height"], said["image"]["width"]), IGNORE, np.int32)
            for number, annotation in enumerate(said["annotations"]):
                labels[masks.decode(annotation["segmentation"]).astype(bool)] = number
            found[said["image"]["key"]] = labels
    assert same(found, truth)
