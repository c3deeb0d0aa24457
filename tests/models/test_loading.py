import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffseg.config import SegmentConfig
from diffseg.models.device import CROPPED
from diffseg.models.fetch import fetch
from diffseg.models.files import ModelFiles
from diffseg.models.load import check, load, random_backend
from diffseg.models.recognise import recognise
from diffseg.models.specs import BACKENDS
from diffseg.models.unet.backend import Backend
from diffseg.models.unet.loading import read_part
from diffseg.models.unet.random_weights import LAYOUTS
from diffseg.models.unet.recognise import attention_levels
from infra.embedded.checkpoints import random_checkpoint, with_small_encoder

torch.set_num_threads(1)

FAMILIES = ["sd1.5", "sd2.1", "sdxl"]
FLOAT32 = SegmentConfig(dtype="float32")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Small random checkpoints of the three families, saved by diffusers."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: random_checkpoint(name, root / name, small=True) for name in FAMILIES}


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoints["sd1.5"], tmp_path / "model"))


def pixels(images=1, height=128, width=128):
    return torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1


def literal_prompt(folder, padding=None):
    """The empty prompt as the family's own pipeline embeds it."""
    hidden, pooled = [], None
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        if not (folder / f"text_encoder{suffix}").is_dir():
            continue
        tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        if padding is not None:
            tokenizer.pad_token = padding
        tokens = tokenizer([""], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        encoder = kind.from_pretrained(folder / f"text_encoder{suffix}").eval()
        with torch.no_grad():
            out = encoder(tokens, output_hidden_states=True)
        hidden.append(out)
        pooled = out.text_embeds if suffix else None
    if pooled is None:
        return hidden[0][0], None
    return torch.cat([out.hidden_states[-2] for out in hidden], dim=-1), pooled


@torch.no_grad()
def literal_latents(folder, images, mode="mean", scaling=None):
    vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean if mode == "mean" else posterior.sample(torch.Generator().manual_seed(0))
    return latents * (scaling or vae.config.scaling_factor)


@torch.no_grad()
def literal_output(folder, latents, hidden, pooled, timestep=300):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
    added = None
    if pooled is not None:
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]])}
    return unet(latents, timestep, encoder_hidden_states=hidden, added_cond_kwargs=added).sample


@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_equals_diffusers_own_parts_to_the_bit(checkpoints, name):
    folder = checkpoints[name]
    backend = Backend.load(str(folder), FLOAT32, device="cpu")
    hidden, pooled = literal_prompt(folder)
    latents = literal_latents(folder, pixels())

    with torch.inference_mode():
        ours, conditions = backend.latents(pixels()), backend.conditions(pixels())
        output = read_part(folder, "unet").float()(ours, backend.config.timestep, **conditions).sample

    assert torch.equal(ours, latents)
    assert torch.equal(conditions["encoder_hidden_states"], hidden)
    assert torch.equal(output, literal_output(folder, latents, hidden, pooled))
    if pooled is None:
        assert "added_cond_kwargs" not in conditions
    else:
        added = conditions["added_cond_kwargs"]
        assert torch.equal(added["text_embeds"], pooled)
        assert added["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_literal_steps_tell_a_wrong_scaling_padding_mode_and_time_apart(checkpoints, name):
    folder = checkpoints[name]
    latents, (hidden, pooled) = literal_latents(folder, pixels()), literal_prompt(folder)
    output = literal_output(folder, latents, hidden, pooled)
    other = "<|endoftext|>" if name == "sd2.1" else "!"
    assert not torch.equal(literal_latents(folder, pixels(), scaling=0.2), latents)
    assert not torch.equal(literal_latents(folder, pixels(), mode="sample"), latents)
    assert not torch.equal(literal_prompt(folder, padding=other)[0], hidden)
    assert not torch.equal(literal_output(folder, latents, hidden, pooled, timestep=50), output)


def test_sdxl_is_told_height_before_width(checkpoints):
    backend = Backend.load(str(checkpoints["sdxl"]), FLOAT32, device="cpu")
    told = backend.conditions(pixels(2, 128, 192))["added_cond_kwargs"]["time_ids"]
    assert told.tolist() == [[128, 192, 0, 0, 128, 192]] * 2


def test_each_family_fills_the_prompt_as_its_own_tokenizer_says(checkpoints):
    def tokens(name, folder="tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(checkpoints[name] / folder)
        return tokenizer("", padding="max_length", max_length=77).input_ids

    begin, end, mark = 998, 999, 0
    assert tokens("sd1.5") == [begin] + [end] * 76
    assert tokens("sd2.1") == [begin, end] + [mark] * 75
    assert tokens("sdxl") == [begin] + [end] * 76
    assert tokens("sdxl", "tokenizer_2") == [begin, end] + [mark] * 75


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_come_finest_first_each_with_rows_that_sum_to_one(checkpoints, name):
    backend = Backend.load(str(checkpoints[name]), FLOAT32, device="cpu")
    maps = backend.attend(pixels(2, 128, 192))
    finest = (16, 24) if name != "sdxl" else (8, 12)
    assert maps.grid == finest
    cells = [finest[0] * finest[1] >> 2 * level for level in range(len(backend.spec.levels))]
    assert [level.shape for level in maps.levels] == [(2, n, n) for n in cells]
    for level in maps.levels:
        assert level.dtype == torch.float32
        assert torch.allclose(level.sum(-1), torch.ones(level.shape[:2]), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_stays_near_full(checkpoints, name, dtype):
    full = Backend.load(str(checkpoints[name]), FLOAT32, device="cpu").attend(pixels())
    half = Backend.load(str(checkpoints[name]), SegmentConfig(dtype=dtype), device="cpu").attend(pixels())
    for a, b in zip(half.levels, full.levels, strict=True):
        assert (a - b).abs().sum(-1).max() < 0.1  # of a row's mass of 1


def test_a_batch_equals_its_images_one_by_one(checkpoints):
    backend = Backend.load(str(checkpoints["sd1.5"]), FLOAT32, device="cpu")
    together = backend.attend(pixels(3))
    for i in range(3):
        alone = backend.attend(pixels(3)[i : i + 1])
        for a, b in zip(together.levels, alone.levels, strict=True):
            assert torch.allclose(a[i : i + 1], b, atol=1e-7, rtol=1e-4)


def test_the_same_call_twice_gives_the_same_bytes(checkpoints):
    backend = Backend.load(str(checkpoints["sd1.5"]), FLOAT32, device="cpu")
    first, second = backend.attend(pixels()), backend.attend(pixels())
    assert all(torch.equal(a, b) for a, b in zip(first.levels, second.levels, strict=True))


def test_only_the_unet_and_the_encoder_stay_in_memory(checkpoints):
    backend = Backend.load(str(checkpoints["sd1.5"]), FLOAT32, device="cpu")
    kept = {name.split(".")[0] for name, _ in backend.encoder.named_parameters()}
    assert kept == {"encoder", "quant_conv"}
    assert not any(weight.requires_grad for weight in [*backend.unet.parameters(), *backend.encoder.parameters()])


def test_pixels_the_unet_cannot_halve_three_times_are_refused(checkpoints):
    backend = Backend.load(str(checkpoints["sd1.5"]), FLOAT32, device="cpu")
    with pytest.raises(ValueError, match="multiples of 64, got 128 x 100"):
        backend.attend(pixels(1, 128, 100))


def test_a_vae_saved_under_the_old_names_is_the_same_vae(copy):
    expected = Backend.load(str(copy), FLOAT32, device="cpu").latents(pixels())
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in load_file(path).items():
        for new, former in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        state[key] = value
    assert any("proj_attn" in key for key in state)
    save_file(state, path)
    assert torch.equal(Backend.load(str(copy), FLOAT32, device="cpu").latents(pixels()), expected)


def test_a_missing_tensor_is_named(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.weight"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"lacks 1 of its \d+ tensors, conv_in.weight first"):
        Backend.load(str(copy), FLOAT32, device="cpu")


def edited(folder, part, **changes):
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return SimpleNamespace(name="x", folder=folder)


@pytest.mark.parametrize(
    ("part", "changes", "line"),
    [
        ("unet", {"in_channels": 9}, "x takes 9 latent channels where its encoder gives 4"),
        ("unet", {"_class_name": "SD3Transformer2DModel"}, "x has no UNet2DConditionModel but SD3Transformer2DModel"),
        ("unet", {"class_embed_type": "projection"}, "x wants conditions beside the prompt"),
        ("unet", {"addition_embed_type": "text_time"}, "needs a text_encoder_2 and has none"),
        ("unet", {"addition_embed_type": "image"}, "x wants conditions beside the prompt"),
        ("unet", {"sample_size": None}, "says nothing of sample_size"),
        (
            "unet",
            {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4, "mid_block_type": None},
            "x has no self-attention",
        ),
    ],
)
def test_what_is_no_text_to_image_model_is_refused_in_one_line(copy, part, changes, line):
    with pytest.raises(ValueError, match=line) as refusal:
        recognise(edited(copy, part, **changes))
    assert "\n" not in str(refusal.value)


def test_a_model_brings_its_own_defaults_in_its_folder(copy):
    own = {"thresholds": [0.3, 0.4], "timestep": 50, "image_size": 256, "dtype": "float32"}
    (copy / "diffseg.json").write_text(json.dumps(own))
    config = SegmentConfig().resolve(recognise(fetch(str(copy))))
    assert (config.thresholds, config.timestep, config.image_size, config.dtype) == ((0.3, 0.4), 50, 256, "float32")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ('{"tau": 1}', "has no 'tau'; it may have thresholds, cut, timestep, image_size, dtype"),
        ('{"timestep": 5000}', "timestep must lie in 0..999, got 5000"),
        ("[]", "should hold a JSON object"),
        ("{", "cannot be read as a model's configuration"),
    ],
)
def test_nonsense_in_a_model_s_own_defaults_is_refused(copy, own, line):
    (copy / "diffseg.json").write_text(own)
    with pytest.raises(ValueError, match=line):
        recognise(fetch(str(copy)))


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "tiny"])
def test_the_table_says_what_the_layouts_say(name):
    spec, layout = BACKENDS[name], LAYOUTS[name]
    assert spec.levels == attention_levels(layout.unet)
    assert spec.image_size == layout.unet["sample_size"] * 8
    assert spec.context == layout.unet["cross_attention_dim"]
    assert spec.vae_scaling == layout.vae["scaling_factor"]
    assert spec.added_conditions == ("addition_embed_type" in layout.unet)


def test_published_facts_of_the_families():
    assert BACKENDS["sd1.4"].levels == ((64, 5), (32, 5), (16, 5), (8, 1))
    assert BACKENDS["sd2.1"].levels == ((96, 5), (48, 5), (24, 5), (12, 1))
    assert BACKENDS["sdxl"].levels == ((64, 10), (32, 60))
    assert [BACKENDS[name].vae_scaling for name in ("sd1.5", "sd-turbo", "sdxl")] == [0.18215, 0.18215, 0.13025]
    assert {spec.timestep for name, spec in BACKENDS.items() if name != "tiny"} == {300}


def test_a_folder_under_a_known_name_with_another_layout_is_refused(checkpoints):
    files = ModelFiles("sd2.1", checkpoints["sd1.5"], None, "0" * 64)
    with pytest.raises(ValueError, match=r"is not sd2\.1: its UNet has another layout"):
        recognise(files)


@pytest.mark.parametrize(("made", "name", "cells"), [(load, "tiny", 32**2), (random_backend, "dinov2-small", 37**2)])
def test_images_whose_crops_are_looked_at_take_more_memory(made, name, cells):
    configs = (SegmentConfig(output_size=256, crop_layers=layers) for layers in (0, 1))
    plain, crops = (made(name, config, "cpu").image_bytes() for config in configs)
    assert crops - plain > CROPPED * cells**2


def test_the_embedded_model_loads_as_any_other():
    backend = Backend.load("tiny", device="cpu")
    assert backend.spec.name == "tiny"
    assert backend.config.dtype == "float32"
    assert backend.batch_size() == 1
    side = backend.config.image_size
    assert side is not None
    assert backend.attend(pixels(1, side, side)).grid == (side // 8, side // 8)


@torch.no_grad()
def test_a_small_encoder_gives_the_latents_that_its_own_library_gives_and_is_weights_of_its_own(checkpoints, tmp_path):
    folder = with_small_encoder(Path(shutil.copytree(checkpoints["sd1.5"], tmp_path / "model")))
    backend = Backend.load(str(folder), FLOAT32, device="cpu")
    own = AutoencoderTiny.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()

    assert torch.equal(backend.latents(pixels()), own.encode(pixels()).latents)
    assert backend.encoder.decoder is None
    assert backend.files.sha256 != fetch(str(checkpoints["sd1.5"])).sha256
    assert backend.attend(pixels()).levels[0].shape == (1, 256, 256)
    check(backend.files)


@pytest.mark.parametrize("settings", [{"latent_channels": 8}, {"encoder_block_out_channels": [16] * 3}])
def test_a_small_encoder_that_does_not_fit_is_refused(checkpoints, tmp_path, settings):
    folder = with_small_encoder(Path(shutil.copytree(checkpoints["sd1.5"], tmp_path / "model")))
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=r"latent channels|shrinks images by 4"):
        recognise(fetch(str(folder)))
