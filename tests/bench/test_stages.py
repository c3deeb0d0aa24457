import json
from typing import Any

import pytest
import torch

from diffseg.config import SegmentConfig
from diffseg.models.attention import AttentionMaps
from diffseg.models.load import load, random_backend
from diffseg.models.unet.capture import cut_after_last_attention
from diffseg.models.unet.loading import new_part
from diffseg.models.unet.random_weights import LAYOUTS
from jobs.shared.cli import run
from pipeline.bench import stages
from pipeline.bench.job import demo_photos
from pipeline.bench.roofline import Limits, count_flop
from pipeline.bench.stages import StageCost, agreement_with, measure, structured_maps

torch.set_num_threads(1)

STAGES = ["decode", "vae", "unet", "capture", "aggregate", "tree", "argmax", "edges", "clean", "vectors", "encode"]


@pytest.fixture(scope="module")
def backend():
    return random_backend("tiny", SegmentConfig(image_size=128, vectors=True), "cpu")


def test_every_stage_is_timed_and_the_limits_are_measured_beside_them(backend):
    measured = measure(backend, batch_size=2, repeats=1, structured=True)
    assert [stage.name for stage in measured.stages] == STAGES
    assert measured.whole > 0
    assert measured.large_decode > next(stage.seconds for stage in measured.stages if stage.name == "decode")
    assert min(measured.limits.model_flop_s, measured.limits.core_flop_s, measured.limits.byte_s) > 0


def test_a_stage_is_bound_by_its_arithmetic_or_by_its_memory_whichever_is_slower():
    limits = Limits(model_flop_s=100.0, core_flop_s=10.0, byte_s=5.0)
    assert StageCost("unet", 1.0, flop=200.0, bytes=5.0).limit(limits) == 2.0
    assert StageCost("merge", 1.0, flop=10.0, bytes=20.0).limit(limits) == 4.0
    assert StageCost("clean", 1.0).limit(limits) is None


@pytest.mark.parametrize(
    ("name", "unet_tflop", "encoder_tflop"),
    [
        ("sd1.5", 0.80, 1.12),
        pytest.param("sd2.1", 2.15, 2.61, marks=pytest.mark.slow),
        pytest.param("sdxl", 6.76, 4.88, marks=pytest.mark.slow),
    ],
)
def test_counted_work_is_that_of_the_exact_layouts(name, unet_tflop, encoder_tflop):
    layout = LAYOUTS[name]
    side = layout.unet["sample_size"]
    unet = new_part(layout.unet, "meta")
    vae: Any = new_part(layout.vae, "meta")
    with torch.inference_mode(), torch.device("meta"):
        given = torch.empty(1, 4, side, side), torch.empty(1), torch.empty(1, 77, layout.unet["cross_attention_dim"])
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        whole = count_flop(lambda: unet(*given, added_cond_kwargs=added))
        cut_after_last_attention(unet)
        assert count_flop(lambda: unet(*given, added_cond_kwargs=added)) < whole
        encoder = count_flop(lambda: vae.encode(torch.empty(1, 3, 8 * side, 8 * side)))
    assert whole / 1e12 == pytest.approx(unet_tflop, abs=0.005)
    assert encoder / 1e12 == pytest.approx(encoder_tflop, abs=0.005)


def test_prepared_attention_is_a_distribution_with_regions():
    like = AttentionMaps((torch.empty(1, 256, 256), torch.empty(1, 64, 64)), (16, 16))
    maps = structured_maps(like, images=2)
    assert [level.shape for level in maps.levels] == [(2, 256, 256), (2, 64, 64)]
    for level in maps.levels:
        assert torch.allclose(level.sum(-1), torch.ones(level.shape[:2]))
        assert level.std() > 0


def test_a_model_labels_as_itself_and_not_as_one_that_sees_less(monkeypatch):
    photos = demo_photos((96, 128))[:2]
    monkeypatch.setattr(stages, "demo_photos", lambda size: photos)
    one, other = (load("tiny", SegmentConfig(image_size=side), "cpu") for side in (128, 192))
    assert agreement_with(one, one) == 1
    assert 0.3 < agreement_with(one, other) < 0.999


def test_the_command_times_the_embedded_model_and_answers_in_json(capsys):
    assert run(["bench", "--model", "tiny", "--repeats", "1", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in report["stages"]] == [name for name in STAGES if name != "vectors"]
    assert report["model"] == "tiny"
    assert sum(stage["share"] for stage in report["stages"] if stage["share"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "bench times one model"),
        (["--model", "tiny", "--random-weights", "sd1.5"], "bench times one model"),
        (["--random-weights", "sd9"], "no layout is known for 'sd9'; possible are sd1.4"),
        (["--model", "tiny", "--dtype", "int8"], "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_what_cannot_be_timed_is_one_line_and_exit_2(capsys, flags, line):
    assert run(["bench", *flags]) == 2
    assert line in capsys.readouterr().err
