"""Model folders that are not what they should be: applied or refused in one line, never made up."""

import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import diffseg
from diffseg.models.fetch import fetch
from diffseg.models.files import listing_of, needed, reader_of
from diffseg.models.load import check
from diffseg.models.unet.backend import Backend
from diffseg.models.unet.loading import read_part, read_prompt
from infra.embedded.checkpoints import random_checkpoint
from jobs.shared import cli
from tests.conftest import samples, write_shard
from tests.models.test_files import FakeHub, offer

torch.set_num_threads(1)

TINY = Path(diffseg.__file__).parent / "tiny"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167536\n"
PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


@pytest.fixture
def folder(tmp_path):
    """The embedded model, to damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture(scope="session")
def two_encoders(tmp_path_factory):
    return random_checkpoint("sdxl", tmp_path_factory.mktemp("sdxl") / "model", small=True)


def weights_of(part):
    return f"{part}/{STEM.get(part, 'model')}.safetensors"


def tensors(part, change):
    """A damage: the weights of a part after `change`, a function of their names and tensors."""

    def damage(folder):
        path = folder / weights_of(part)
        save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata={"format": "pt"})

    return damage


def renamed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def without(*names):
    return lambda state: {key: value for key, value in state.items() if key not in names}


def beside(**more):
    return lambda state: state | {key.replace("__", "."): value for key, value in more.items()}


def settings(part, **changes):
    def damage(folder):
        path = folder / part / "config.json" if "." not in part else folder / part
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def written(name, data):
    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def in_parts(part, variant="", index=None, count=2, names=None):
    """Split a part's weights in parts with an index, as both libraries write them."""

    def change(folder):
        stem, path = STEM.get(part, "model"), folder / weights_of(part)
        state = load_file(path)
        keys, where = sorted(state), dict[str, str]()
        for n in range(count):
            name = (names or f"{stem}{variant}-{{:05d}}-of-{count:05d}.safetensors").format(n + 1)
            mine = keys[n::count]
            save_file({key: state[key] for key in mine}, path.parent / name, metadata={"format": "pt"})
            where |= dict.fromkeys(mine, name)
        told = {"metadata": {"total_size": 1}, "weight_map": where}
        (path.parent / (index or f"{stem}.safetensors.index{variant}.json")).write_text(json.dumps(told))
        path.unlink()

    return change


def then(*steps):
    def damage(folder):
        for step in steps:
            step(folder)

    return damage


def index_says(part, change):
    def damage(folder):
        [path] = (folder / part).glob("*.index*.json")
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


TWELVE = [1.0] * 12
FIRST = "embeddings.position_embedding.weight"
WRONG = {
    # names and shapes
    "text encoder under other names": (
        tensors("text_encoder", renamed("cond_stage_model.transformer.")),
        rf"model/text_encoder/model\.safetensors does not fit .*lacks 20 of its 20 tensors, {FIRST} first",
    ),
    "text encoder of OpenCLIP": (
        tensors(
            "text_encoder", lambda state: {"transformer.resblocks.0.ln_1.weight": state["final_layer_norm.weight"]}
        ),
        "lacks 20 of its 20 tensors",
    ),
    "text encoder without one tensor": (
        tensors("text_encoder", without("final_layer_norm.bias")),
        r"lacks 1 of its 20 tensors, final_layer_norm\.bias first",
    ),
    "text encoder with a layer more": (
        tensors("text_encoder", beside(encoder__layers__1__mlp__fc1__bias=torch.zeros(4))),
        r"text_encoder/model\.safetensors does not fit .* no place for encoder\.layers\.1\.mlp\.fc1\.bias",
    ),
    "text encoder of another width": (
        settings("text_encoder", hidden_size=128),
        "UNet for prompts 64 wide and text encoders that give 128",
    ),
    "text encoder of another depth": (
        settings("text_encoder", intermediate_size=64),
        r"holds encoder\.layers\.0\.mlp\.fc1\.bias as F16 \[128\], not \[64\]",
    ),
    "text encoder in whole numbers": (
        tensors("text_encoder", lambda state: state | {"final_layer_norm.bias": torch.zeros(64, dtype=torch.int8)}),
        r"holds final_layer_norm\.bias as I8 \[64\]",
    ),
    "text encoder of one name twice": (
        tensors("text_encoder", beside(text_model__final_layer_norm__bias=torch.zeros(64))),
        r"no place for (text_model\.)?final_layer_norm\.bias",
    ),
    "text encoder of another class": (settings("text_encoder", model_type="t5"), "is no CLIP but t5"),
    "text encoder that contradicts itself": (
        settings("text_encoder", num_attention_heads=7),
        "text_encoder/config.json describes no model",
    ),
    "unet with a tensor too many": (
        tensors("unet", beside(ip_adapter__weight=torch.zeros(2))),
        "no place for ip_adapter",
    ),
    "unet of another shape": (settings("unet", block_out_channels=[32, 64, 96, 96]), r"holds \S+ as F16 \["),
    "unet without a tensor": (tensors("unet", without("conv_in.bias")), r"unet/diff\S+ .*conv_in\.bias first"),
    "vae of another class": (
        settings("vae", _class_name="AutoencoderTiny"),
        r"shrinks images by 1, not by 8 \(vae/config\.json\)",
    ),
    "vae of no class": (settings("vae", _class_name=None), r"no AutoencoderKL or AutoencoderTiny but None"),
    "unet of another class": (settings("unet", _class_name="UNet3DConditionModel"), "but UNet3DConditionModel"),
    "vae with attention that its configuration denies": (
        tensors("vae", beside(encoder__mid_block__attentions__0__to_q__weight=torch.zeros(32, 32))),
        "no place for encoder.mid_block.attentions.0.to_q.weight",
    ),
    "vae whose configuration denies its last layer": (settings("vae", use_quant_conv=False), "no place for quant_conv"),
    "vae that shrinks less": (
        settings("vae", block_out_channels=[8, 16, 24], down_block_types=["DownEncoderBlock2D"] * 3),
        "shrinks images by 4",
    ),
    "vae of four colours": (settings("vae", in_channels=4), "encoder of 4 channels"),
    # latents
    "mean alone": (settings("vae", latents_mean=TWELVE), "only one of latents_mean, latents_std"),
    "deviations alone": (settings("vae", latents_std=TWELVE), "only one of latents_mean, latents_std"),
    "mean and shift": (settings("vae", latents_mean=TWELVE, latents_std=TWELVE, shift_factor=1), "or shift_factor too"),
    "mean of four channels of twelve": (
        settings("vae", latents_mean=[0.1] * 4, latents_std=TWELVE),
        r"latents_mean = \[0.1.*12 numbers",
    ),
    "deviation of nothing": (settings("vae", latents_mean=TWELVE, latents_std=[0.0] * 12), "latents_std = .*positive"),
    "deviations in words": (settings("vae", latents_mean=TWELVE, latents_std=["1"] * 12), "latents_std = .*12 numbers"),
    "no scaling": (settings("vae", scaling_factor=None), "scaling_factor = None"),
    "scaling in words": (settings("vae", scaling_factor="0.18"), "scaling_factor = '0.18'"),
    "scaling that is no number": (settings("vae", scaling_factor=float("nan")), "scaling_factor = nan"),
    "scaling that is a truth": (settings("vae", scaling_factor=True), "scaling_factor = True"),
    "shift in a list": (
        settings("vae", shift_factor=[0.1]),
        r"shift_factor = \[0.1\], which should be a number or null",
    ),
    "upcast in words": (settings("vae", force_upcast="no"), "force_upcast of 'no'"),
    "a word on latents that nobody knows": (settings("vae", latents_offset=0.3), "says latents_offset of its latents"),
    "a side that is no number": (settings("unet", sample_size="32"), "sample_size of '32'"),
    "a side that no pass halves": (settings("unet", sample_size=33), "sample_size of 33"),
    "noise levels for times": (
        settings("scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
        "told noise levels, not times .*EDMEulerScheduler",
    ),
    "flow for diffusion": (
        settings("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        "noise levels",
    ),
    "other times": (settings("scheduler/scheduler_config.json", num_train_timesteps=250), "250 diffusion times"),
    # files
    "pointer for weights": (written(weights_of("unet"), POINTER), rf"model/{weights_of('unet')} is a Git LFS pointer"),
    "pointer for a text encoder": (
        written(weights_of("text_encoder"), POINTER),
        "text_encoder/model.* Git LFS pointer",
    ),
    "pointer for settings": (written("vae/config.json", POINTER), "model/vae/config.json is a Git LFS pointer"),
    "pointer for a vocabulary": (written("tokenizer/vocab.json", POINTER), "tokenizer/vocab.json is a Git LFS pointer"),
    "pointer for merges": (written("tokenizer/merges.txt", POINTER), "tokenizer/merges.txt is a Git LFS pointer"),
    "pointer for a scheduler": (
        written("scheduler/scheduler_config.json", POINTER),
        "scheduler_config.json is a Git LFS",
    ),
    "pointer for an index": (
        then(in_parts("unet"), written("unet/diffusion_pytorch_model.safetensors.index.json", POINTER)),
        "index.json is a Git LFS pointer",
    ),
    "web page for weights": (written(weights_of("vae"), PAGE), rf"{weights_of('vae')} is a web page"),
    "web page for settings": (written("text_encoder/config.json", PAGE), "text_encoder/config.json is a web page"),
    "empty weights": (written(weights_of("text_encoder"), b""), "text_encoder/model.safetensors is empty"),
    "empty settings": (written("unet/config.json", b""), "unet/config.json is empty"),
    "truncated weights": (cut(weights_of("unet")), rf"{weights_of('unet')} is damaged or not whole"),
    "truncated settings": (cut("text_encoder/config.json"), "text_encoder/config.json cannot be read"),
    "truncated vocabulary": (cut("tokenizer/vocab.json"), "tokenizer/vocab.json cannot be read"),
    "a pickle by another name": (written(weights_of("unet"), b"PK\3\4" + bytes(2000)), "is damaged or not whole"),
    "pickles alone": (
        then(removed(weights_of("text_encoder")), written("text_encoder/pytorch_model.bin", b"PK\3\4")),
        "text_encoder only as a pickle",
    ),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "no tokenizer/vocab.json"),
    "no word on a prompt's length": (
        removed("tokenizer/tokenizer_config.json"),
        "tokenizer_config.json gives no model_max_length of at most 77",
    ),
    "more words than the encoder knows": (
        settings("tokenizer/vocab.json", **{"<|endoftext|>": 49_407}),
        "has words beyond the 1000",
    ),
    # weights in parts
    "an index that names what is not there": (
        then(in_parts("unet"), removed("unet/diffusion_pytorch_model-00002-of-00002.safetensors")),
        "index.json names unet/diffusion_pytorch_model-00002-of-00002.safetensors, which is not there",
    ),
    "an index that leads out of its folder": (
        then(in_parts("vae"), index_says("vae", lambda told: {"weight_map": {"a": "../x.safetensors"}})),
        r"index.json names \['../x.safetensors'\], not safetensors of its own folder",
    ),
    "an index of pickles": (
        then(in_parts("vae"), index_says("vae", lambda told: {"weight_map": {"a": "model.bin"}})),
        r"names \['model.bin'\]",
    ),
    "an index of nothing": (then(in_parts("vae"), index_says("vae", lambda told: {"weight_map": {}})), "names nothing"),
    "an index without a map": (then(in_parts("vae"), index_says("vae", lambda told: {})), "is no index of weights"),
    "a truncated part": (
        then(in_parts("text_encoder"), cut("text_encoder/model-00002-of-00002.safetensors")),
        "model-00002-of-00002.safetensors is damaged or not whole",
    ),
    "an index that leaves a part out": (
        then(
            in_parts("text_encoder"),
            index_says("text_encoder", lambda told: {"weight_map": {FIRST: "model-00001-of-00002.safetensors"}}),
        ),
        "text_encoder/model-00001-of-00002.safetensors does not fit .* lacks 10 of its 20 tensors",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_is_not_what_it_says_is_refused_in_one_line_that_names_the_file(folder, what):
    damage, line = WRONG[what]
    damage(folder)
    with pytest.raises(ValueError, match=line) as refusal:
        check(fetch(str(folder)))
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("what", ["text encoder under other names", "truncated weights", "unet with a tensor too many"])
def test_what_was_not_looked_at_before_is_refused_when_it_is_loaded(folder, what):
    damage, line = WRONG[what]
    damage(folder)
    with pytest.raises(ValueError, match=line):
        Backend.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            tensors("text_encoder_2", without("text_projection.weight")),
            r"text_encoder_2/model.* text_projection\.weight",
        ),
        (tensors("text_encoder_2", renamed("conditioner.")), "text_encoder_2/model.safetensors .*lacks"),
        (written("text_encoder_2/config.json", POINTER), "text_encoder_2/config.json is a Git LFS pointer"),
        (settings("text_encoder_2", projection_dim=64), "80 added conditions and 112 to give"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "no tokenizer_2/vocab.json"),
    ],
)
def test_the_second_text_encoder_is_held_to_the_same(two_encoders, tmp_path, damage, line):
    folder = shutil.copytree(two_encoders, tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=line):
        check(fetch(str(folder)))


def whole_clip(state):
    """What a file of a whole CLIP holds beside its text encoder, and what older libraries saved with it."""
    others = {"vision_model.embeddings.position_ids": torch.arange(5)[None], "logit_scale": torch.tensor(4.6)}
    others |= {"visual_projection.weight": torch.zeros(4, 4), "text_projection.weight": torch.zeros(4, 4)}
    others |= {"text_model.embeddings.position_ids": torch.arange(77)[None], "vision_model.x.weight": torch.zeros(2)}
    return others | {f"text_model.{key}": value for key, value in state.items()}


def settings_of_a_whole_clip(folder):
    path = folder / "text_encoder" / "config.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": "clip", "projection_dim": 768, "text_config": text, "vision_config": {}}))


SOUND = {  # the part that was changed, and how
    "names with a prefix": ("text_encoder", tensors("text_encoder", renamed("text_model."))),
    "positions beside the names": (
        "text_encoder",
        tensors("text_encoder", beside(embeddings__position_ids=torch.arange(77)[None])),
    ),
    "a whole CLIP": ("text_encoder", then(tensors("text_encoder", whole_clip), settings_of_a_whole_clip)),
    "text encoder in parts": ("text_encoder", in_parts("text_encoder")),
    "text encoder in parts of bfloat16": ("text_encoder", in_parts("text_encoder", ".bf16")),
    "unet in three parts": ("unet", in_parts("unet", count=3)),
    "vae in parts of half precision": ("vae", in_parts("vae", ".fp16")),
    "parts as diffusers named them": (
        "vae",
        in_parts(
            "vae",
            index="diffusion_pytorch_model.safetensors.fp16.index.json",
            names="diffusion_pytorch_model-{:05d}-of-00002.fp16.safetensors",
        ),
    ),
    "parts of any name": ("vae", in_parts("vae", names="piece_{}.safetensors")),
    "parts without an index": (
        "vae",
        then(in_parts("vae"), removed("vae/diffusion_pytorch_model.safetensors.index.json")),
    ),
    "an index of parts that are not there, and half precision": (
        "vae",
        then(
            lambda folder: (folder / weights_of("vae")).rename(folder / "vae/diffusion_pytorch_model.fp16.safetensors"),
            written(f"{weights_of('vae')}.index.json", b'{"weight_map": {"a": "b.safetensors"}}'),
        ),
    ),
    "a vae without its decoder": (
        "vae",
        tensors("vae", lambda state: {k: v for k, v in state.items() if not k.startswith(("decoder", "post"))}),
    ),
    "latents that are shifted by nothing": ("vae", settings("vae", shift_factor=0.0)),
    "no scheduler": ("vae", lambda folder: shutil.rmtree(folder / "scheduler")),
    "another scheduler": (
        "vae",
        settings("scheduler/scheduler_config.json", prediction_type="v_prediction", beta_end=0.1),
    ),
}


def values(folder, part):
    """What a part gives, or what it holds."""
    if part == "text_encoder":
        return {"prompt": read_prompt(folder, two_encoders=False)[0]}
    return read_part(folder, part).state_dict()


def pixels():
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(7)) * 2 - 1


def attention(model):
    check(fetch(model))
    return Backend.load(model, device="cpu").attend(pixels()).levels


@pytest.mark.parametrize("what", SOUND)
def test_every_way_to_lay_out_the_same_weights_is_the_same_model_to_the_bit(folder, what):
    part, change = SOUND[what]
    change(folder)
    check(fetch(str(folder)))
    ours, theirs = values(folder, part), values(TINY, part)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture
def parts(folder):
    """The embedded model with every part's weights in parts, one of them under names of its own."""
    for part, names in (("unet", "piece_{}.safetensors"), ("vae", None), ("text_encoder", None)):
        in_parts(part, names=names)(folder)
    return folder


@pytest.fixture
def places(parts, tmp_path, monkeypatch):
    """Where that model may lie."""
    store = fsspec.filesystem("memory")
    store.rm("/in-parts", recursive=True) if store.exists("/in-parts") else None
    for path in parts.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/in-parts/{path.relative_to(parts).as_posix()}", path.read_bytes())
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    offer(monkeypatch, FakeHub(parts))
    assert cli.run(["fetch", "memory://in-parts", str(tmp_path / "copy")]) == 0
    return {"folder": str(parts), "storage": "memory://in-parts", "hub": "owner/name", "copy": str(tmp_path / "copy")}


def test_weights_in_parts_load_from_anywhere_as_one_model(places):
    assert len({fetch(place).sha256 for place in places.values()}) == 1
    for ours, theirs in zip(attention(places["storage"]), attention(str(TINY)), strict=True):
        assert torch.equal(ours, theirs)
    check(fetch(places["copy"]))
    copied = {path.name for path in Path(places["copy"]).rglob("*")}
    assert {"model.safetensors.index.json", "piece_2.safetensors"} <= copied


def test_what_is_wrong_with_a_model_on_storage_is_told_by_its_url(places, tmp_path):
    fsspec.filesystem("memory").pipe_file("/in-parts/unet/piece_1.safetensors", POINTER)
    with pytest.raises(ValueError, match=r"^memory://in-parts/unet/piece_1\.safetensors is a Git LFS pointer"):
        check(fetch("memory://in-parts"))
    fsspec.filesystem("memory").rm("/in-parts/unet/piece_1.safetensors")
    with pytest.raises(ValueError, match=r"index\.json names unet/piece_1\.safetensors, which is not there"):
        fetch("memory://in-parts")


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"latents_mean": [0.5 + n for n in range(12)], "latents_std": [2.0 + n for n in range(12)]}, None, None),
        ({"shift_factor": 0.1159}, [0.1159] * 12, [1.0] * 12),
        ({"shift_factor": -2, "latents_mean": None}, [-2.0] * 12, [1.0] * 12),
    ],
)
def test_what_a_vae_says_of_its_latents_is_applied(folder, changes, mean, std):
    plain = Backend.load(str(folder), device="cpu").latents(pixels())
    before = fetch(str(folder)).sha256
    settings("vae", **changes)(folder)
    normed = Backend.load(str(folder), device="cpu").latents(pixels())
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (mean or changes["latents_mean"], std or changes["latents_std"])
    )
    assert torch.allclose(normed, (plain / 0.18215 - mean) / std * 0.18215, atol=1e-5)
    assert fetch(str(folder)).sha256 != before


def first_digest(folder):
    """As 0.1.0 made it."""
    names = needed("x", listing_of(folder), reader_of(folder))
    assert not [name for name in names if "index" in name or "scheduler" in name]
    whole = hashlib.sha256()
    for name in names:
        whole.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return whole.hexdigest()


def test_a_model_has_the_hash_that_0_1_0_gave_it_unless_its_labels_were_wrong_then(folder, parts):
    assert fetch(str(TINY)).sha256 == first_digest(TINY)
    assert fetch(str(parts)).sha256 == first_digest(parts)
    settings("vae", latents_mean=[0.0] * 12, latents_std=TWELVE)(folder)
    assert fetch(str(folder)).sha256 != first_digest(folder)


COMMANDS = [
    ("label", "text encoder under other names"),
    ("label", "vae of another class"),
    ("label", "pointer for settings"),
    ("segment", "text encoder under other names"),
    ("segment", "pointer for weights"),
    ("pilot", "unet of another shape"),
    ("bench", "web page for weights"),
    ("fetch", "truncated weights"),
    ("fetch", "text encoder under other names"),
]


@pytest.mark.parametrize(("command", "what"), COMMANDS)
def test_every_command_says_so_in_one_line_before_it_begins(folder, tmp_path, capsys, command, what):
    WRONG[what][0](folder)
    photo = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photo)
    shard, out = str(write_shard(tmp_path / "in" / "a.tar", samples(1))), str(tmp_path / "out")
    words = {
        "label": ["label", shard, "--output", out, "--model", str(folder)],  # no worker, no Ray
        "segment": ["segment", str(photo), "--output", out, "--model", str(folder)],
        "pilot": ["pilot", shard, "--output", f"{out}/pilot.html", "--model", str(folder)],
        "bench": ["bench", "--model", str(folder)],
        "fetch": ["fetch", str(folder), out],
    }
    assert cli.run(words[command]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("diffseg: ")
    assert str(folder) in said
    assert not [path for path in Path(out).rglob("*") if path.is_file()]
