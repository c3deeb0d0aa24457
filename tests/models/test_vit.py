import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from diffseg import DiffSeg, SegmentConfig
from diffseg.config import fingerprint
from diffseg.models.fetch import fetch
from diffseg.models.files import needed
from diffseg.models.load import check, load, random_backend
from diffseg.models.recognise import recognise
from diffseg.models.specs import VITS
from diffseg.models.unet.backend import Backend as UNet
from diffseg.models.vit.backend import Backend
from diffseg.models.vit.capture import attention_layers
from diffseg.models.vit.random_weights import LAYOUTS
from infra.embedded.checkpoints import random_checkpoint
from infra.scenes.scene import draw_scene
from jobs.shared import cli
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger

torch.set_num_threads(1)

KINDS = [
    *("dinov2-small", "dinov2-giant", "dinov2-with-registers-small", "dinov2-with-registers-giant"),
    *("dinov3-small", "dinov3-small-plus"),
]
REAL = Path(__file__).parents[3] / "shared" / "real" / "dinov2-small"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Small random models of every kind, saved by transformers."""
    root = tmp_path_factory.mktemp("vits")
    return {name: random_checkpoint(name, root / name, small=True, seed=number) for number, name in enumerate(KINDS)}


def loaded(folder, config: SegmentConfig | None = None) -> Any:
    """A model of any family on the processor."""
    return load(str(folder), config, "cpu")


def pixels(height, width, images=1, seed=7):
    return torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def literal(folder, given, layers=2):
    """Attention and last hidden state as transformers' own eager code has them."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    normed = ((given + 1) * 127.5 / 255 - mean) / std
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    answer = model(normed, output_attentions=True)
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    kept = torch.stack(answer.attentions[-layers:]).mean((0, 2))[:, first:, first:]
    return kept / kept.sum(-1, keepdim=True), normed, first


@pytest.mark.parametrize("name", KINDS)
def test_attention_is_transformers_own_and_features_are_the_last_hidden_state_to_the_bit(folders, name):
    backend = loaded(folders[name])
    given = pixels(3 * backend.spec.unit, 5 * backend.spec.unit, images=2)
    expected, _, first = literal(folders[name], given)

    maps = backend.attend(given, features=True)

    assert (maps.grid, maps.features_grid) == ((3, 5), (3, 5))
    assert expected.std() > 0.005, "flat attention agrees with anything"
    assert (maps.levels[0] - expected).abs().max() < 1e-5
    model = AutoModel.from_pretrained(folders[name], attn_implementation="sdpa", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(maps.features, model(backend.normed(given)).last_hidden_state[:, first:])
    plain = backend.attend(given)
    assert plain.features is None
    assert torch.equal(plain.levels[0], maps.levels[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="no real weights on this machine")
def test_so_they_are_with_real_weights():
    backend = loaded(REAL)
    given = pixels(8 * 14, 12 * 14)
    expected, normed, first = literal(REAL, given, layers=6)
    maps = backend.attend(given, features=True)
    assert (maps.levels[0] - expected).abs().max() < 1e-5
    assert torch.allclose(backend.normed(given), normed, atol=1e-5)
    model = AutoModel.from_pretrained(REAL, attn_implementation="sdpa", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(maps.features, model(backend.normed(given)).last_hidden_state[:, first:])


@pytest.mark.parametrize("name", ["sd1.5", "sdxl"])
def test_features_of_a_unet_are_the_output_of_its_encoder_s_last_self_attention(tmp_path, name):
    backend = loaded(random_checkpoint(name, tmp_path / "m", small=True), SegmentConfig(dtype="float32"))
    assert isinstance(backend, UNet)
    unet: Any = backend.unet
    block = unet.down_blocks[-1 if name == "sdxl" else -2].attentions[-1].transformer_blocks[-1].attn1
    seen = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    given = pixels(128, 192)
    maps: Any = backend.attend(given, features=True)
    handle.remove()
    assert torch.equal(maps.features, seen[0])
    assert math.prod(maps.features_grid) == maps.features.shape[1]
    plain = backend.attend(given)
    assert plain.features is None
    assert all(torch.equal(one, other) for one, other in zip(plain.levels, maps.levels, strict=True))


def test_nothing_of_a_recording_outlives_its_pass_even_when_that_fails(folders, monkeypatch):
    backend = loaded(folders["dinov2-small"])
    layers = attention_layers(backend.model)
    assert len(layers) == 5
    before = [set(vars(layer)) for layer in layers]
    whole = list(backend.model.modules())
    ran = []
    perceptrons = [module for module in whole if type(module).__name__ == "Dinov2MLP"]
    for each in perceptrons:
        each.register_forward_hook(lambda *_: ran.append(1))
    backend.attend(pixels(28, 28))
    assert len(ran) == len(perceptrons) - 1, "what only features need ran without them"
    backend.attend(pixels(28, 28), features=True)
    assert len(ran) == 2 * len(perceptrons) - 1
    monkeypatch.setattr(backend, "tokens", lambda given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.attend(pixels(28, 28))
    assert [set(vars(layer)) for layer in layers] == before
    assert list(backend.model.modules()) == whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["dinov2-small", "dinov3-small"])
def test_half_precision_stays_near_full(folders, name, dtype):
    given = pixels(4 * 16 * 7, 4 * 16 * 7)
    full, half = (loaded(folders[name], SegmentConfig(dtype=each)).attend(given) for each in ("float32", dtype))
    assert (full.levels[0] - half.levels[0]).abs().sum(-1).max() < 0.1
    if name == "dinov3-small":
        backend = loaded(folders[name], SegmentConfig(dtype=dtype))
        assert backend.model.rope_embeddings.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("size", [(14, 14), (1, 5000), (8000, 6000), (1, 1)])
def test_images_of_odd_sizes_are_labelled(folders, size):
    segmenter = DiffSeg.from_pretrained(str(folders["dinov3-small"]), SegmentConfig(image_size=112), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    [found] = segmenter.segment([image])
    scale = min(1, 1024 / max(size))
    assert found.label_map.shape == tuple(max(1, round(side * scale)) for side in size)
    assert sum(segment.area for segment in found.segments) == found.label_map.size


def test_a_batch_equals_its_images_one_by_one(folders):
    backend = loaded(folders["dinov2-small"])
    batch = backend.attend(pixels(56, 84, images=3)).levels[0]
    for number, image in enumerate(pixels(56, 84, images=3)):
        assert torch.allclose(batch[number : number + 1], backend.attend(image[None]).levels[0], atol=1e-6)


def test_sides_that_are_no_multiples_of_the_patch_are_refused(folders):
    backend = loaded(folders["dinov2-small"])
    with pytest.raises(ValueError, match="multiples of 14, got 28 x 30"):
        backend.attend(pixels(28, 30))


def test_the_warning_of_an_absent_preprocessor_names_the_values_and_the_digest_knows(folders, tmp_path, caplog):
    folder = copy(folders["dinov2-small"], tmp_path)
    with caplog.at_level("WARNING"):
        given = loaded(folder)
    assert not caplog.messages
    (folder / "preprocessor_config.json").unlink()
    absent = loaded(folder)
    [said] = caplog.messages
    assert "no preprocessor_config.json" in said
    assert "(0.485, 0.456, 0.406)" in said
    assert fetch(str(folder)).sha256 == absent.files.sha256 != given.files.sha256
    assert torch.equal(absent.normed(pixels(14, 14)), given.normed(pixels(14, 14)))


def copy(folder, tmp_path, **config):
    target = tmp_path / "model"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if value is not ...})
    )
    return target


@pytest.mark.parametrize(
    ("said", "scale", "shift"),
    [
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, 1.0, 0.0),
        ({"do_normalize": False}, 0.5, 0.5),
        ({"do_normalize": False, "do_rescale": False}, 127.5, 127.5),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 1.0, 1.0),
    ],
)
def test_what_the_preprocessor_says_of_values_is_applied(folders, tmp_path, said, scale, shift):
    folder = copy(folders["dinov2-small"], tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    given = pixels(14, 14)
    assert torch.allclose(loaded(folder).normed(given), given * scale + shift, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"image_mean": [0.5]}, "image_mean = .0.5., which should be three numbers"),
        ({"image_std": [1, 1, 0]}, "image_std = .*, which should be positive"),
        ({"rescale_factor": "255"}, "rescale_factor = '255', which should be a positive number"),
        ({"do_flip_channel_order": True}, "asks for do_flip_channel_order"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(folders, tmp_path, said, line):
    folder = copy(folders["dinov2-small"], tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=line):
        fetch(str(folder))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"model_type": "dinov3_convnext"}, "is a model of the kind dinov3_convnext, .* possible are vision transf"),
        ({"model_type": "clip"}, "is a model of the kind clip"),
        ({"model_type": ...}, "is a model of the kind None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers of 0, so no self-attention"),
        ({"num_attention_heads": None}, "num_attention_heads of None"),
        ({"patch_size": [14, 7]}, "patch_size of .14, 7."),
        ({"num_channels": 1}, "takes 1 channels where an image has 3"),
        ({"image_size": [112, 224]}, "position table that is no square"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 3}, "describes no model|does not fit"),
        ({"hidden_act": "magic"}, "config.json describes no model"),
        ({"layer_norm_eps": "small"}, "config.json describes no model"),
        ({"hidden_size": 64}, "does not fit .*config.json"),
        ({"num_hidden_layers": 4, "out_features": ..., "out_indices": ...}, "has no place for encoder.layer.4"),
        ({"num_hidden_layers": 6}, "lacks 18 of its .* tensors, encoder.layer.5"),
        ({"use_swiglu_ffn": True}, "does not fit"),
        ({"patch_size": 16}, "does not fit"),
        ({"rope_theta": 100.0}, "says rope_theta of its attention .config.json., which is not known here"),
        ({"qk_norm": True}, "says qk_norm of its attention"),
        ({"attn_logit_softcapping": 50.0}, "says attn_logit_softcapping of its attention"),
    ],
)
def test_a_configuration_that_is_none_of_these_models_is_refused_in_one_line(folders, tmp_path, config, line):
    folder = copy(folders["dinov2-small"], tmp_path, **config)
    with pytest.raises(ValueError, match=line) as refusal:
        check(fetch(str(folder)))
    assert "\n" not in str(refusal.value)


def test_weights_that_are_no_numbers_are_refused(folders, tmp_path):
    folder = copy(folders["dinov2-small"], tmp_path)
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no usable attention: its layernorm.weight holds NaN"):
        loaded(folder)


CONFIG, WHOLE = "config.json", "model.safetensors"


@pytest.mark.parametrize(
    ("listing", "taken"),
    [
        ([CONFIG, WHOLE, "README.md", "pytorch_model.bin"], [CONFIG, WHOLE]),
        ([CONFIG, "model.fp16.safetensors"], [CONFIG, "model.fp16.safetensors"]),
        ([CONFIG, WHOLE, "preprocessor_config.json", "diffseg.json"],
         [CONFIG, "diffseg.json", WHOLE, "preprocessor_config.json"]),
        ([CONFIG, *(parts := [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)])], [CONFIG, *parts]),
    ],
)  # fmt: skip
def test_only_what_decides_labels_is_taken(listing, taken):
    assert needed("x", listing) == taken


@pytest.mark.parametrize(
    ("listing", "line"),
    [
        ([CONFIG, "pytorch_model.bin"], "holds its weights only as a pickle, which is a program"),
        ([CONFIG], "is no whole vision transformer: no model.safetensors"),
    ],
)
def test_a_model_without_safetensors_is_refused(listing, line):
    with pytest.raises(ValueError, match=line):
        needed("x", listing)


def test_weights_in_parts_and_of_a_classifier_are_the_same_model(folders, tmp_path):
    whole = folders["dinov2-giant"]
    expected = loaded(whole).attend(pixels(28, 28)).levels[0]
    folder = copy(whole, tmp_path)
    state = {f"dinov2.{name}": weight for name, weight in load_file(folder / WHOLE).items()}
    state["classifier.weight"] = torch.zeros(2, 64)
    (folder / WHOLE).unlink()
    names = sorted(state)
    index: dict[str, str] = {}
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in some}, folder / file)
        index |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(loaded(folder).attend(pixels(28, 28)).levels[0], expected)


def test_a_folder_brings_its_own_defaults_and_layers(folders, tmp_path):
    folder = copy(folders["dinov2-small"], tmp_path)
    before = fetch(str(folder)).sha256
    own = {"thresholds": [0.2, 0.4], "image_size": 28, "dtype": "bfloat16", "layers": 3}
    (folder / "diffseg.json").write_text(json.dumps(own))
    config = SegmentConfig().resolve(recognise(fetch(str(folder))))
    assert (config.thresholds, config.image_size, config.dtype, config.unit) == ((0.2, 0.4), 28, "bfloat16", 14)
    assert fetch(str(folder)).sha256 != before
    given = pixels(28, 42)
    expected, *_ = literal(folder, given, layers=3)
    assert (loaded(folder, SegmentConfig(dtype="float32")).attend(given).levels[0] - expected).abs().max() < (1e-5)


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"timestep": 50}, "has no 'timestep'; it may have thresholds, cut, layers, image_size, dtype"),
        ({"layers": 6}, "takes the last 6 layers, and there are 5"),
        ({"layers": 0}, "takes the last 0 layers"),
        ({"image_size": 64}, "image_size must be a multiple of 14 pixels, got 64"),
    ],
)
def test_nonsense_in_a_model_s_own_defaults_is_refused(folders, tmp_path, own, line):
    folder = copy(folders["dinov2-small"], tmp_path)
    (folder / "diffseg.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=line):
        fetch(str(folder))


def test_what_a_vit_lacks_is_none_and_refused_if_given():
    spec = VITS["dinov2-small"]
    config = SegmentConfig().resolve(spec)
    assert (config.timestep, config.unit, config.image_size) == (None, 14, 518)
    assert config.to_dict()["unit"] == 14
    assert fingerprint(config, "x") != fingerprint(SegmentConfig(image_size=504).resolve(spec), "x")
    with pytest.raises(ValueError, match="dinov2-small has no timestep, got 300"):
        SegmentConfig(timestep=300).resolve(spec)
    with pytest.raises(ValueError, match="multiple of 14 pixels, got 512"):
        SegmentConfig(image_size=512).resolve(spec)


@pytest.mark.parametrize("name", VITS)
def test_the_table_says_what_the_layouts_say(name):
    spec, layout = VITS[name], LAYOUTS[name]
    assert (spec.unit, spec.width, spec.depth) == (
        *(layout["patch_size"], layout["hidden_size"], layout["num_hidden_layers"]),
    )
    assert spec.layers == spec.depth // 2
    assert (spec.registers, spec.image_size) == (layout.get("num_register_tokens", 0), 37 * spec.unit)


def test_a_folder_under_a_known_name_with_another_layout_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("diffseg.models.fetch._locate", lambda model, cache, wanted: (folders["dinov2-small"], None))
    with pytest.raises(ValueError, match=r"what lies there is not dinov2-base: .* 32 channels, 5 layers"):
        fetch("dinov2-base")


@pytest.fixture
def photos(tmp_path):
    """A tar of four photos."""
    content = []
    for number in range(4):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(np.random.default_rng(number), (60, 90)).image).save(buffer, "PNG")
        content.append((str(number), {"png": buffer.getvalue()}))
    (tmp_path / "s.tar").write_bytes(write_samples(content))
    return str(tmp_path / "s.tar")


def test_every_command_takes_one_and_a_run_resumes(folders, tmp_path, photos, capsys):
    folder, run = str(folders["dinov2-with-registers-small"]), str(tmp_path / "run")
    settings = ["--model", folder, "--image-size", "56"]
    command = ["label", photos, "--output", run, *settings, "--workers", "0", "--window", "2"]
    assert cli.run(command) == 0
    first = sorted(Path(run, "labels").glob("*.parquet"))
    first[0].unlink()
    Path(run, "labels").joinpath(first[0].name.split(".")[0] + ".end.json").unlink(missing_ok=True)
    assert cli.run(command) == 0
    assert [path.name for path in sorted(Path(run, "labels").glob("*.parquet"))] == [path.name for path in first]
    assert {row["status"] for row in Ledger.open(run).rows()} == {"ok"}
    assert cli.run(["verify", run, "--full"]) == 0
    demo = str(tmp_path / "demo")
    capsys.readouterr()
    assert cli.run(["demo", "--model", folder, "--output", demo, "--workers", "0"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["next:", "diffseg"],
        ["diffseg", "label"],
    ]
    assert json.loads(Path(demo, "run", "run.json").read_text())["model"] == folder
    assert cli.run(["fetch", folder, str(tmp_path / "mirror")]) == 0
    mirror = loaded(tmp_path / "mirror")
    assert isinstance(mirror, Backend)
    assert mirror.files.sha256 == fetch(folder).sha256
    assert cli.run([*command[:-2], "--timestep", "50"]) == 2
    assert "has no timestep, got 50" in capsys.readouterr().err
    assert cli.run(["plan", photos]) == 0
    assert cli.run(["pilot", photos, *settings, "--samples", "2", "--output", str(tmp_path / "pilot.html")]) == 0


@pytest.mark.parametrize("name", ["dinov2-small", "dinov3-small"])
def test_random_weights_are_timed_stage_by_stage(name):
    from pipeline.bench.stages import measure

    backend = random_backend(name, SegmentConfig(image_size=8 * VITS[name].unit), "cpu")
    measured = measure(backend, batch_size=2, repeats=1, structured=True)
    assert [stage.name for stage in measured.stages][:3] == ["decode", "vit", "capture"]
    assert measured.stages[1].flop > 0
