"""Loading through diffusers and transformers: parts of a model are built, or read from a recognised folder.

A part is built without memory on the "meta" device and given its weights tensor by tensor. Each of its tensors must
be in its files, in its shape, and each tensor of the files must belong to it: nothing is left to random numbers.
Importing this needs no torch. `Backend`, the model in memory, lives in `diffseg.models.unet.backend`.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.models.files import WEIGHTED, ModelFiles, tensors_of, weight_files
from diffseg.models.recognise import named, read_json, recognise, text_settings, wrong_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffseg.models.unet.backend import Backend as Backend

NAMED = 3  # tensors named in an error
UNUSED = {  # tensors in the files of a part that are not loaded: parts that are dropped, and index buffers
    "unet": r"$^",
    "vae": r"(decoder|post_quant_conv)\..*",
    "text_encoder": r"vision_model\..*|(visual|text)_projection\.weight|logit_scale|.*\bposition_ids",
    "text_encoder_2": r"vision_model\..*|visual_projection\.weight|logit_scale|.*\bposition_ids",
}
FLOATS = re.compile(r"(BF|F)\d+.*")  # types of weights, as safetensors names them


def new_part(settings: Mapping[str, Any], device: str = "cpu") -> "nn.Module":
    """Build a UNet or VAE from its configuration, with the random weights diffusers starts from.

    On the "meta" device it takes no memory and has no weights yet.
    """
    _quiet()
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = {kind.__name__: kind for kind in (UNet2DConditionModel, AutoencoderKL)}
    with torch.device(device):
        part: nn.Module = kinds[settings["_class_name"]].from_config(dict(settings))
    return part.eval()


def new_text_encoder(settings: Mapping[str, Any], projected: bool, device: str = "cpu") -> "nn.Module":
    """Build a CLIP text encoder as `new_part` does; projected: with the pooled projection SDXL adds."""
    _quiet()
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    with torch.device(device):
        encoder: nn.Module = kind(CLIPTextConfig(**settings))
    return encoder.eval()


@lru_cache(maxsize=8)
def check(files: ModelFiles) -> None:
    """Check that a model can be loaded, without reading a weight: every part is compared with the headers of its files.

    Raises ValueError as `Backend.load` would.
    """
    with named(files):
        two_encoders = recognise(files).added_conditions
        for name in WEIGHTED[: 3 + two_encoders]:
            _locations(_blank(files.folder, name), files.folder, name)
        for name in WEIGHTED[2 : 3 + two_encoders]:
            _tokens(files.folder, name)


def read_unet(folder: Path) -> "nn.Module":
    """Load the UNet of a fetched checkpoint, in the precision of its files."""
    return _filled(folder, "unet")


def read_encoder(folder: Path) -> "nn.Module":
    """Load a VAE without its decoder, on which no label depends."""
    return _filled(folder, "vae")


def read_prompt(folder: Path, two_encoders: bool) -> tuple["Tensor", "Tensor | None"]:
    """Embed the empty prompt as the family's own pipeline does: [1, 77, context], and pooled [1, channels] or None."""
    import torch

    with torch.inference_mode():
        first = _encode_nothing(folder, "text_encoder")
        if not two_encoders:
            return first.last_hidden_state, None
        second = _encode_nothing(folder, "text_encoder_2")
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return hidden, second.text_embeds


def _encode_nothing(folder: Path, name: str) -> Any:
    import torch

    tokens = torch.tensor([_tokens(folder, name)])
    positions = torch.arange(tokens.shape[1])[None]  # the encoder's own list of them is in no file
    encoder: Any = _filled(folder, name).float()
    return encoder(tokens, position_ids=positions, output_hidden_states=True)


def _tokens(folder: Path, name: str) -> list[int]:
    """Tokens of the empty prompt. Raises ValueError where the tokenizer does not fit the text encoder."""
    _quiet()
    from transformers import CLIPTokenizer

    words, text = folder / name.replace("text_encoder", "tokenizer"), text_settings(folder, name)
    most, known = text.get("max_position_embeddings", 77), text.get("vocab_size", 49_408)
    for path in words.glob("*.json"):
        read_json(path)
    if (words / "merges.txt").exists() and (fault := wrong_file(words / "merges.txt")):
        raise ValueError(f"{words}/merges.txt {fault}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
    except Exception as error:  # each release raises other kinds on files that are none of a tokenizer
        raise ValueError(f"{words} is no tokenizer of CLIP: {_first_line(error)}") from error
    if tokenizer.model_max_length > most:
        raise ValueError(f"{words}/tokenizer_config.json gives no model_max_length of at most {most} tokens")
    tokens: list[int] = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length).input_ids
    if max(tokens) >= known:
        raise ValueError(f"{words} has words beyond the {known} that {folder / name} knows")
    return tokens


def _quiet() -> None:
    """Silence both libraries; to be called before the first import of either."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of a missing torchvision
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it warns of every change of precision
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of a few files


def _blank(folder: Path, name: str) -> "nn.Module":
    """A part of a checkpoint as its configuration describes it, on the meta device."""
    config = folder / name / "config.json"
    try:
        if name.startswith("text_encoder"):
            return new_text_encoder(text_settings(folder, name), name == "text_encoder_2", "meta")
        part = new_part(read_json(config), "meta")
    except Exception as error:  # what the libraries raise on settings that contradict each other is theirs to choose
        raise ValueError(f"{config} describes no model: {type(error).__name__}: {_first_line(error)}") from error
    if name == "vae":
        vae: Any = part  # a part may be None, but nn.Module's types do not say so
        vae.decoder = vae.post_quant_conv = None
    return part


def _filled(folder: Path, name: str) -> "nn.Module":
    """A part of a checkpoint with its weights, in the precision of its files. Raises ValueError: see `_locations`."""
    from safetensors import safe_open

    part = _blank(folder, name)
    locations = _locations(part, folder, name)
    state: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in locations.values()}):
        with safe_open(path, framework="pt") as file:
            state |= {wanted: file.get_tensor(key) for wanted, (where, key) in locations.items() if where == path}
    part.load_state_dict(state, assign=True)
    if blank := [key for key, tensor in chain(part.named_parameters(), part.named_buffers()) if _is_blank(key, tensor)]:
        raise ValueError(f"{folder / name} is of a kind whose {blank[0]} is in no file and not known here")
    return part.requires_grad_(False)


def _is_blank(key: str, tensor: "Tensor") -> bool:
    return tensor.is_meta and not key.endswith("position_ids")


def _locations(part: "nn.Module", folder: Path, name: str) -> dict[str, tuple[Path, str]]:
    """Location of each tensor of a part: its file, and its name in it.

    Raises ValueError that names the file and some tensors that are missing, unknown, or of another shape or type.
    """
    wanted = {_modern(key): (key, tuple(tensor.shape)) for key, tensor in part.state_dict().items()}
    locations: dict[str, tuple[Path, str]] = {}
    misfits: list[str] = []
    files = weight_files(folder, name)
    for path in files:
        for key, shape, dtype in tensors_of(path):
            own, expected = wanted.get(_modern(key), ("", ()))
            if own and own not in locations:
                locations[own] = path, key
                if shape != expected or not FLOATS.fullmatch(dtype):
                    misfits.append(f"holds {key} as {dtype} {list(shape)}, not {list(expected)}")
            elif own or not re.fullmatch(UNUSED[name], _modern(key)):
                misfits.append(f"has no place for {key}")
    missing = sorted(key for key, _ in wanted.values() if key not in locations)
    if missing or misfits:
        where = files[0] if len(files) == 1 else folder / name
        lacking = [f"lacks {len(missing)} of its {len(wanted)} tensors, {missing[0]} first"] if missing else []
        more = [f"({len(misfits) - NAMED} more)"] if len(misfits) > NAMED else []
        others = ", ".join(missing[1:NAMED])
        faults = "; ".join([*lacking, *([f"then {others}"] if others else []), *sorted(misfits)[:NAMED], *more])
        raise ValueError(f"{where} does not fit {folder / name}/config.json: {faults}")
    return locations


def _modern(key: str) -> str:
    """The current name of a tensor: the attention of VAEs was renamed in 2023, text encoders had a prefix."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return key.removeprefix("text_model.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def __getattr__(name: str) -> Any:
    if name != "Backend":
        raise AttributeError(f"module 'diffseg.models.unet.loading' has no attribute {name!r}")
    from diffseg.models.unet.backend import Backend

    return Backend
