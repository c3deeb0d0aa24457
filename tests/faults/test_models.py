"""Hostile models: what they ask for is held against their weights' headers before anything is built, in little time."""

import json
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffseg.models.fetch import fetch
from diffseg.models.joint.files import fetch_joint
from diffseg.models.joint.model import JointModel
from diffseg.models.load import check
from infra.embedded.checkpoints import random_checkpoint
from jobs.shared import cli
from tests.categories.joint import small_model
from tests.models.test_wrong_models import TINY, in_parts, settings, then, weights_of, written

VIT = "model.safetensors"


def lying(change):
    """Damage: the header of a ViT's weights after `change`, as long as it then is."""

    def damage(folder):
        data = (folder / VIT).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header, next(name for name in sorted(header) if name != "__metadata__"))
        made = json.dumps(header).encode()
        (folder / VIT).write_bytes(struct.pack("<Q", len(made)) + made + data[8 + length :])

    return damage


def said_length(length):
    return lambda folder: (folder / VIT).write_bytes(struct.pack("<Q", length) + (folder / VIT).read_bytes()[8:])


def deep(name):
    return written(name, b'{"a": ' + b"[" * 200_000)


UNETS = {
    "channels of 10^9": (settings("unet", block_out_channels=[32, 64, 96, 10**9]), "block_out_channels is beyond"),
    "65,000 channels": (settings("unet", block_out_channels=[32, 64, 96, 65_000]), "asks for a block_out_channels"),
    "10^6 layers of one block": (settings("unet", layers_per_block=[1, 1, 1, 10**6]), "layers_per_block is beyond"),
    "1,000 layers a block": (settings("unet", layers_per_block=1_000), "asks for a layers_per_block"),
    "999 transformers a layer": (
        settings("unet", transformer_layers_per_block=[999] * 4),
        "asks for a transformer_layers_per_block",
    ),
    "10,000 blocks": (
        settings(
            "unet",
            down_block_types=["CrossAttnDownBlock2D"] * 10_000,
            up_block_types=["CrossAttnUpBlock2D"] * 10_000,
            block_out_channels=[32] * 10_000,
            layers_per_block=1,
        ),
        "says more of block_out_channels than its weights have tensors|is no multiple|describe no model",
    ),
    "10^9 positions": (settings("text_encoder", max_position_embeddings=10**9), "max_position_embeddings is beyond"),
    "10^6 positions": (settings("text_encoder", max_position_embeddings=10**6), r"not \[1000000, 64\]"),
    "900 layers of a text encoder": (settings("text_encoder", num_hidden_layers=900), "asks for a num_hidden_layers"),
    "a tokenizer of 10^30 tokens": (
        settings("tokenizer/tokenizer_config.json", model_max_length=10**30),
        "no model_max_length of at most 77",
    ),
    "a tokenizer of -1 tokens": (settings("tokenizer/tokenizer_config.json", model_max_length=-1), "model_max_length"),
    "a vocabulary beyond the encoder": (settings("text_encoder", vocab_size=10**6), r"not \[1000000, 64\]"),
    "a vocabulary without end": (deep("tokenizer/vocab.json"), "vocab.json cannot be read"),
    "an index without end": (
        then(in_parts("unet"), deep("unet/diffusion_pytorch_model.safetensors.index.json")),
        "is no index of weights in parts",
    ),
    "settings of 100 megabytes": (written("vae/config.json", b" " * (100 << 20)), "which no configuration has"),
    "weights of nothing but a length": (written(weights_of("vae"), b"\xff" * 8), "damaged or not whole"),
}
VITS = {
    "1,000 times as wide": (settings("config.json", hidden_size=64_000), "asks for a hidden_size of 64000"),
    "1,000 layers": (settings("config.json", num_hidden_layers=1_000), "asks for a num_hidden_layers of 1000"),
    "a width of 10^12 within": (settings("config.json", more=[{"hidden_size": 10**12}]), "hidden_size is beyond"),
    "pictures of 10^6 pixels": (settings("config.json", image_size=10**6, patch_size=1), "describes no model|not \\["),
    "a ratio of 10^9": (settings("config.json", mlp_ratio=10**9), "mlp_ratio is beyond"),
    "10^5 registers": (settings("config.json", num_register_tokens=10**5), "num_register_tokens is beyond"),
    "a header of 2^63 bytes": (said_length(2**63 - 1), "damaged or not whole"),
    "a header longer than the file": (said_length(90 << 20), "damaged or not whole"),
    "a tensor beyond the end": (
        lying(lambda header, name: header[name].update(data_offsets=[0, 2**50])),
        "damaged or not whole",
    ),
    "a tensor of 2^60 numbers": (
        lying(lambda header, name: header[name].update(shape=[2**30, 2**30])),
        "damaged or not whole",
    ),
    "two tensors in one place": (
        lying(lambda header, name: header.update({name + "2": header[name]})),
        "damaged or not whole",
    ),
    "a negative shape": (lying(lambda header, name: header[name].update(shape=[-1])), "damaged or not whole"),
    "defaults beyond sense": (written("diffseg.json", b'{"image_size": 1000000000}'), "image_size is beyond"),
    "1,000 iterations": (
        written("diffseg.json", json.dumps({"thresholds": [1.0] * 1_000}).encode()),
        "thresholds name at most 64",
    ),
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return random_checkpoint("dinov2-with-registers-small", tmp_path_factory.mktemp("vit") / "model", small=True)


@pytest.mark.parametrize("what", [*UNETS, *VITS])
def test_a_hostile_model_is_refused_in_one_line_in_little_time_and_memory(tmp_path, vit, what):
    folder = Path(shutil.copytree(TINY if what in UNETS else vit, tmp_path / "model"))
    damage, line = {**UNETS, **VITS}[what]
    damage(folder)
    begun = time.process_time()
    with pytest.raises(ValueError, match=line) as refusal:
        check(fetch(str(folder)))
    assert time.process_time() - begun < 9
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 2_000


def test_it_takes_little_memory(tmp_path):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    settings("unet", transformer_layers_per_block=[999] * 4)(folder)
    tracemalloc.start()
    with pytest.raises(ValueError, match="asks for"):
        check(fetch(str(folder)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 32 << 20


@pytest.mark.parametrize(
    "model",
    [
        "jupyter://h/m",
        "reference://m.json",
        "zip://m::s3://b/m.zip",
        "zip::/m",
        "github://o:r@main/m",
        "data:,x",
        "m\0",
    ],
)
def test_models_in_odd_places_are_one_line(tmp_path, capsys, model):
    assert cli.run(["label", "x.tar", "--output", str(tmp_path / "run"), "--model", model, "--workers", "0"]) in (2, 4)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1


JOINT = {
    "900 layers": (
        lambda folder: changed(folder, lambda said: said["text_config"].update(num_hidden_layers=900)),
        "asks for .* weights, and",
    ),
    "1,000 times as wide": (
        lambda folder: changed(folder, lambda said: said["text_config"].update(hidden_size=16_000)),
        "asks for .* weights, and",
    ),
    "a smaller vocabulary than the tokenizer's": (
        lambda folder: shrunk(folder, 4),
        "gives token 87, and its model knows 4",
    ),
}


def shrunk(folder, vocabulary):
    changed(folder, lambda said: said["text_config"].update(vocab_size=vocabulary))
    state = load_file(folder / VIT)
    name = "text_model.embeddings.token_embedding.weight"
    save_file({**state, name: state[name][:vocabulary].clone()}, folder / VIT, metadata={"format": "pt"})


def changed(folder, change):
    said = json.loads((folder / "config.json").read_text())
    change(said)
    (folder / "config.json").write_text(json.dumps(said))


@pytest.mark.parametrize("what", JOINT)
def test_a_hostile_model_of_words_is_refused_too(tmp_path, what):
    folder = small_model(tmp_path / "joint", "clip")
    damage, line = JOINT[what]
    damage(folder)
    with pytest.raises(ValueError, match=line) as refusal:
        JointModel.load(fetch_joint(str(folder), JointModel.naming), "cpu").words(["a cat"])
    assert "\n" not in str(refusal.value)
