"""What labels, on the stand-in CUDA device: tests that `tests/models/test_cuda_standin.py` runs apart.

Whatever is added to the project is added here: a model to MODELS, a configuration to CONFIGS. Every pair of a model, a
precision and a configuration then goes through `label`, a choice of them in the default suite.
"""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg import DiffSeg
from diffseg.config import SegmentConfig
from diffseg.evaluation.matching import agreement
from diffseg.models.fetch import fetch
from diffseg.models.joint.files import fetch_joint
from diffseg.models.joint.model import Detector, JointModel
from diffseg.models.specs import VITS
from diffseg.models.unet.backend import Backend
from diffseg.models.unet.random_weights import LAYOUTS
from infra.benchmarks import costs
from infra.embedded.checkpoints import random_checkpoint, with_small_encoder
from infra.scenes.scene import draw_scene
from jobs.shared import cli
from pipeline.config import RunConfig
from pipeline.inputs.tar.writing import write_samples
from pipeline.labelling import label
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.categories.detectors import DETECTORS, small_detector
from tests.categories.joint import small_model
from tests.support.cuda.cuda_attention import OPERATORS
from tests.support.cuda.cuda_standin import CudaStandIn


def families():
    """A model of each family: layouts that differ in their size alone are one."""
    found: dict[str, str] = {}
    for name, layout in LAYOUTS.items():
        found.setdefault(repr(replace(layout, unet={**layout.unet, "sample_size": 0})), name)
    return sorted(found.values(), key=lambda name: name != "tiny")


FEW_TRIED = ("sdxl", "dinov2-small")
VITS_TRIED = ("dinov2-small", "dinov2-giant", "dinov3-small")  # a table of positions, the other MLP, rotary positions
SMALL_ENCODER = "sd1.4, AutoencoderTiny"
MODELS = [*families(), *VITS_TRIED]  # "tiny" first, with its own weights; the others: random ones, few channels
PRECISIONS = [  # and what attention runs on; no other kernel takes float32
    ("float32", "efficient"),
    *product(("bfloat16", "float16"), ("flash", "efficient", "cudnn")),
]
CONFIGS: dict[str, dict[str, Any]] = {
    "fast": {},
    "greedy": {"tree": False},
    "coarse": {"edges": False},
    "paper": {"mode": "paper"},
    "refine": {"refine": True},
    "split": {"split_components": True, "vectors": True, "ridges": True, "crop_layers": 1},
    "quality": {"mode": "quality"},
}
SIDE = 128  # pixels, of what the model sees: a case takes a second
SIZES = ((96, 128), (96, 128))  # of photos; they share a pass, and the reference image, a square, has its own
CLOSE = 3e-4  # nats: attention of random weights is nearly flat, and at any larger threshold an image is one segment
LEAST = 0.995  # of the pixels


def cases():
    """A model, a precision and a configuration each. In the default suite: the embedded model in every precision and,
    in float32, with every configuration; of the others one or two each, for seconds count.
    """
    for (m, model), (p, precision), (c, config) in product(
        enumerate(MODELS), enumerate(PRECISIONS), enumerate(CONFIGS)
    ):
        if model == "tiny":
            chosen = p == 0 or c == p % len(CONFIGS)
        else:
            chosen = p in {2 * m % 6, 0 if m < 3 else None} and c == (p + m) % len(CONFIGS)
        if config == "quality" and model != "tiny" and p:
            continue  # the features of random weights differ by little more than half precision rounds away
        case = model, *precision, config
        yield pytest.param(*case, marks=[] if chosen else [pytest.mark.slow], id="-".join(case))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos():
    return [draw_scene(np.random.default_rng(number), size).image for number, size in enumerate(SIZES)]


@pytest.fixture(scope="session")
def shard(photos, tmp_path_factory):
    """A tar of them."""
    path = tmp_path_factory.mktemp("in") / "s.tar"
    content = []
    for number, photo in enumerate(photos):
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "PNG")
        content.append((str(number), {"png": buffer.getvalue()}))
    path.write_bytes(write_samples(content))
    return str(path)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Where a model lies, by its name; random weights are drawn when they are first asked for."""
    folders = {"tiny": "tiny"}

    def find(name):
        if name not in folders:
            kind, _, small_encoder = name.partition(", ")
            folder = random_checkpoint(kind, tmp_path_factory.mktemp("model"), small=True)
            folders[name] = str(with_small_encoder(folder) if small_encoder else folder)
        return folders[name]

    return find


@pytest.fixture(scope="session")
def on_processor(photos, folder_of):
    """The labels that a processor gives, each made once."""

    @cache
    def labels(model, config):
        found = DiffSeg.from_pretrained(folder_of(model), config, device="cpu").segment(photos)
        return [each.label_map for each in found]

    return labels


def labelled(shard, output, model, config):
    """The label maps of a run in this process."""
    label([shard], output, model, config, RunConfig(workers=0))
    rows = list(Ledger.open(output).rows())
    assert [row["status"] for row in rows] == [OK] * len(SIZES)
    return [decode_label_map(row["label_map"]) for row in rows]


@pytest.mark.parametrize(("model", "dtype", "kernel", "config"), list(cases()))
def test_the_labels_are_the_processor_s(shard, folder_of, on_processor, tmp_path, model, dtype, kernel, config):
    unit = VITS[model].unit if model in VITS else 64
    settings: dict[str, Any] = {"image_size": SIDE // unit * unit, **CONFIGS[config]}
    if model != "tiny" and dtype == "float32" and config != "quality":
        settings |= {"cut": CLOSE} if config in ("fast", "split") else {"thresholds": (CLOSE,) * 3}
    expected = on_processor(model, SegmentConfig(dtype=dtype, **settings))

    with CudaStandIn(kernel) as device:
        found = labelled(shard, str(tmp_path / "run"), folder_of(model), SegmentConfig(dtype=dtype, **settings))

    agreed = np.average([*map(agreement, found, expected)], weights=[one.size for one in expected])
    assert agreed >= LEAST
    assert {name for name, _ in device.launches} & set(OPERATORS) == {f"_scaled_dot_product_{kernel}_attention"}
    if model == "tiny" or dtype == "float32":
        assert max(label_map.max() for label_map in expected) > 0, "one segment an image agrees with anything"


def test_everything_that_costs_time_is_counted_with_the_line_that_asks_for_it(shard, tmp_path):
    with CudaStandIn() as device:
        labelled(shard, str(tmp_path / "run"), "tiny", SegmentConfig(image_size=SIDE, dtype="bfloat16"))
    places = [*(place for _, place in (*device.launches, *device.syncs)), *device.uploads, *device.downloads]
    assert all(re.fullmatch(r"(diffseg|pipeline)/[\w/]+\.py:\d+", place) for place in places)
    weights = sum(path.stat().st_size for path in Path(fetch("tiny").folder).rglob("*.safetensors"))
    assert sum(device.uploads.values()) > weights / 2, "they are stored in half precision, and the decoder stays behind"
    assert sum(device.downloads.values()) >= 4 * sum(h * w for h, w in SIZES), "label maps"


COSTS = json.loads(costs.TABLE.read_text())
COSTS_TRIED = ("greedy, batch 16", "vectors, batch 4", *(f"all but crops of a small {m}, batch 2" for m in FEW_TRIED))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in COSTS_TRIED else [pytest.mark.slow]) for n in COSTS])
def test_a_batch_costs_no_more_than_it_did(folder_of, name):
    """After a cost has fallen, or grown for a reason: python infra/benchmarks/costs.py --write."""
    case = costs.CASES[name]
    found = costs.count(folder_of(case.model), case)
    more = costs.grown(found, COSTS[name])
    assert not more, "\n".join(more)
    if case.config == costs.GREEDY:
        assert found["syncs"].total() <= 15, found["syncs"]


def test_a_small_encoder_gives_the_latents_of_the_processor(folder_of):
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = SegmentConfig(dtype="float32")
    expected = Backend.load(folder_of(SMALL_ENCODER), config, "cpu").latents(pixels)
    with CudaStandIn():
        found = Backend.load(folder_of(SMALL_ENCODER), config).latents(pixels)
        assert found.is_cuda
        assert torch.allclose(found.cpu(), expected, atol=1e-5)


def test_a_batch_is_filled_up_to_a_power_of_two_and_no_row_changes_by_it(photos):
    given: list[torch.Tensor] = []
    attend = Backend.attend

    def noting(own, pixels, **asked):
        given.append(pixels)
        return attend(own, pixels, **asked)

    with CudaStandIn(), pytest.MonkeyPatch.context() as patched:
        segmenter = DiffSeg.from_pretrained("tiny", SegmentConfig(image_size=SIDE, dtype="float32"), batch_size=4)
        images = [segmenter.prepare(photo) for photo in (*photos, photos[0][:, ::-1])]
        patched.setattr(Backend, "attend", noting)
        assert segmenter.launch(images)
        assert segmenter.launch(images[:1])
        together, [alone] = segmenter.segment(images), segmenter.segment(images[:1])
        assert [len(pixels) for pixels in given] == [4, 2], "what was launched is not run again"
        segmenter.segment(images)
    assert len(given) == 3
    assert np.array_equal(together[0].label_map, alone.label_map)
    assert len(together) == 3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_words_and_patches_are_the_processor_s(photos, tmp_path, kind):
    files = fetch_joint(str(small_model(tmp_path / kind, kind)), "clip")
    model = JointModel.load(files, "cpu")
    words, patches = model.words(["cat", "a photo"]), model.patches(photos[0])
    with CudaStandIn() as device:
        moved = JointModel.load(files)
        assert moved.device.type == "cuda"
        np.testing.assert_allclose(moved.words(["cat", "a photo"]), words, atol=1e-5)
        np.testing.assert_allclose(moved.patches(photos[0]), patches, atol=1e-5 * np.abs(patches).max())
    assert device.launches


@pytest.mark.parametrize("kind", DETECTORS)
def test_boxes_of_words_are_the_processor_s(photos, tmp_path, kind):
    files, words = fetch_joint(str(small_detector(tmp_path / kind, kind)), "detector"), ("cat", "a kitten")
    [expected] = Detector.load(files, "cpu").boxes(photos[0], words)
    with CudaStandIn() as device:
        [found] = Detector.load(files).boxes(photos[0], words)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3 if kind == "grounding-dino" else 1e-5)  # it looks where
    assert device.launches  # earlier layers send it: what they round away moves its boxes


def test_attention_to_words_is_the_processor_s(photos):
    config = SegmentConfig(image_size=SIDE, words=("cat, kitten", "dog", "sky"))
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected: Any = Backend.load("tiny", config, "cpu").attend(pixels, features=True).words
    with CudaStandIn() as device:
        moved = DiffSeg.from_pretrained("tiny", config)
        maps: Any = moved.backend.attend(pixels, features=True)
        found, results = maps.words.cpu(), moved.segment(photos)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [each.words.shape for each in results if each.words is not None] == [
        (len(each.tree.leaves), 3) for each in results if each.tree is not None
    ]
    assert device.launches


@pytest.fixture
def passes(monkeypatch):
    """What each pass of a model finds wrong with its batch, by its number; number 0 is the reference image's."""
    faults: dict[int, Callable[[torch.Tensor], object]] = {}
    attend, number = Backend.attend, count()

    def faulty(backend, pixels, **asked):
        faults.get(next(number), lambda pixels: None)(pixels)
        return attend(backend, pixels, **asked)

    monkeypatch.setattr(Backend, "attend", faulty)
    return faults


class AcceleratorError(RuntimeError):
    """As torch names its own, which versions before 2.8 do not have."""


COMMAND = ("--model", "tiny", "--image-size", str(SIDE), "--workers", "0", "--window", "1", "--batch-size", "1")
FAILURES = [
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    AcceleratorError("CUDA error: unknown error"),
]


def statuses(output):
    return [row["status"] for row in Ledger.open(output).rows()]


def said(capsys):
    """The last line that a command has said of errors."""
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_run_whose_device_is_lost_stops_in_one_line_and_the_same_command_finishes_it(
    shard, tmp_path, passes, capsys, error
):
    command = ["label", shard, "--output", str(tmp_path / "run"), *COMMAND]

    def lose(pixels):
        device.lose(AcceleratorError("CUDA error: unspecified launch failure"))
        raise error

    passes[2] = lose
    with CudaStandIn() as device:
        assert cli.run(command) == 4
    assert re.fullmatch(
        "diffseg: stopped: the device is lost to this process: .*; the same command resumes", said(capsys)
    )
    assert statuses(command[3]) == [OK]

    with CudaStandIn():
        assert cli.run(command) == 0
    assert statuses(command[3]) == [OK, OK]


def test_a_sample_that_a_sound_device_refuses_costs_its_own_row_alone(shard, tmp_path, passes):
    def refuse(pixels):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`")

    passes[2] = passes[3] = refuse  # when it is launched, and when its labels are asked for
    with CudaStandIn():
        assert cli.run(["label", shard, "--output", str(tmp_path / "run"), *COMMAND]) == 3
    assert statuses(str(tmp_path / "run")) == [OK, "model_error"]


def test_a_batch_for_which_cublas_finds_no_room_is_halved(shard, tmp_path, passes):
    def overflow(pixels):
        assert len(pixels) == len(SIZES)
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    passes[1] = passes[2] = overflow  # beside the batch before it, and alone
    with CudaStandIn() as device:
        labelled(shard, str(tmp_path / "run"), "tiny", SegmentConfig(image_size=SIDE))
    assert sum(times for (what, _), times in device.syncs.items() if what == "empty_cache") == 2
