"""A model folder recognised by its own files, and the one doorway to diffusers, which reads or builds its parts.

Importing this needs no torch: a driver recognises models too. `Backend`, the model in memory, lives in `diffseg.model`
and is reachable from here by name.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.config import SegmentConfig
from diffseg.specs import BACKENDS, BackendSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffseg.model import Backend as Backend
    from diffseg.weights import ModelFiles

OVERRIDES = "diffseg.json"  # in a model's folder: its own thresholds, timestep, image_size, dtype
LATENT_SCALE = 8  # image pixels a latent cell, in every family


def recognise(files: "ModelFiles") -> BackendSpec:
    """Tell what a model folder holds from its own configuration files, whatever it is called.

    Raises ValueError naming what the folder is where it is no text-to-image UNet of the SD 1, 2 or XL family.
    """
    unet = read_json(files.folder / "unet" / "config.json")
    vae = read_json(files.folder / "vae" / "config.json")
    _refuse_strangers(files.name, unet, vae)
    added_conditions = unet.get("addition_embed_type") == "text_time"
    if added_conditions and not (files.folder / "text_encoder_2").is_dir():
        raise ValueError(f"{files.name} has the layout of SDXL, which needs a text_encoder_2 and has none")
    levels = attention_levels(unet)
    table = BACKENDS.get(files.name)
    if (
        table is not None
        and table.repo
        and (table.context, [count for _, count in table.levels])
        != (
            unet["cross_attention_dim"],
            [count for _, count in levels],
        )
    ):
        raise ValueError(f"{files.folder} is not {files.name}: its UNet has another layout (levels {levels})")
    spec = replace(
        table or BackendSpec(name=files.name, repo=None, licence="unknown"),
        image_size=unet["sample_size"] * LATENT_SCALE,
        levels=levels,
        context=unet["cross_attention_dim"],
        added_conditions=added_conditions,
        vae_scaling=vae.get("scaling_factor", 0.18215),  # absent in the oldest files, which are all SD 1
        vae_upcast=added_conditions and vae.get("force_upcast", True),
    )
    return _override(spec, files.folder / OVERRIDES)


def attention_levels(unet: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """The self-attention of a UNet by its configuration: (side of the grid, layers), finest first."""
    down, up = unet["down_block_types"], unet["up_block_types"]
    layers = _per_block(unet["layers_per_block"], len(down))
    depths = _per_block(unet.get("transformer_layers_per_block") or 1, len(down))
    up_depths = unet.get("reverse_transformer_layers_per_block") or list(reversed(depths))
    counts = [0] * len(down)
    for level, (kind, layer, depth) in enumerate(zip(down, layers, depths, strict=True)):
        counts[level] += sum(_per_block(depth, layer)) if "CrossAttn" in kind else 0
    for level, (kind, layer, depth) in enumerate(zip(reversed(up), layers, reversed(up_depths), strict=True)):
        counts[level] += sum(_per_block(depth, layer + 1)) if "CrossAttn" in kind else 0
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        counts[-1] += depths[-1] if isinstance(depths[-1], int) else depths[-1][0]
    return tuple((unet["sample_size"] >> level, count) for level, count in enumerate(counts) if count)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError where there is no such file or it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a model's configuration: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(content).__name__}")
    return content


def _per_block(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def _refuse_strangers(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    possible = "possible are text-to-image checkpoints of the SD 1.x, 2.x and SDXL layouts"
    if unet.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"{name} has no UNet2DConditionModel but {unet.get('_class_name')}; {possible}")
    if missing := [key for key in ("sample_size", "cross_attention_dim", "down_block_types") if not unet.get(key)]:
        raise ValueError(f"{name}: unet/config.json says nothing of {', '.join(missing)}; {possible}")
    channels = unet.get("in_channels", 4)
    if channels != vae.get("latent_channels", 4):
        raise ValueError(
            f"{name} takes {channels} latent channels where its encoder gives {vae.get('latent_channels', 4)} "
            f"(an inpainting, depth or upscaling model?); {possible}"
        )
    if unet.get("only_cross_attention") not in (None, False) or not attention_levels(unet):
        raise ValueError(f"{name} has no self-attention to read segments from; {possible}")
    if unet.get("addition_embed_type") not in (None, "text_time") or unet.get("class_embed_type") is not None:
        raise ValueError(f"{name} wants conditions beside the prompt that are not known here; {possible}")


def _override(spec: BackendSpec, path: Path) -> BackendSpec:
    if not path.is_file():
        return spec
    own = read_json(path)
    possible = ("thresholds", "timestep", "image_size", "dtype")
    if unknown := sorted(set(own) - set(possible)):
        raise ValueError(f"{path} has no {unknown[0]!r}; it may have {', '.join(possible)}")
    if "thresholds" in own:
        own["thresholds"] = tuple(own["thresholds"])
    try:
        SegmentConfig(**own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(spec, **own)


def new_part(settings: Mapping[str, Any], device: str = "cpu") -> "nn.Module":
    """Build a UNet or VAE from its configuration, with the random weights diffusers starts from.

    On the "meta" device it takes no memory and waits for its weights.
    """
    _quiet()
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = {kind.__name__: kind for kind in (UNet2DConditionModel, AutoencoderKL)}
    with torch.device(device):
        part: nn.Module = kinds[settings["_class_name"]].from_config(dict(settings))
    return part.eval()


def new_text_encoder(settings: Mapping[str, Any], projected: bool) -> "nn.Module":
    """Build a CLIP text encoder with random weights; projected: with the pooled projection SDXL adds."""
    _quiet()
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    encoder: nn.Module = kind(CLIPTextConfig(**settings))
    return encoder.eval()


def read_unet(folder: Path) -> "nn.Module":
    """Load the UNet of a fetched checkpoint, in the precision of its files."""
    unet = new_part(read_json(folder / "unet" / "config.json"), "meta")
    return _fill(unet, folder, "unet")


def read_encoder(folder: Path) -> "nn.Module":
    """Load a VAE without its decoder, which no label needs."""
    vae: Any = new_part(read_json(folder / "vae" / "config.json"), "meta")
    vae.decoder = vae.post_quant_conv = None
    return _fill(vae, folder, "vae")


def read_prompt(folder: Path, two_encoders: bool) -> tuple["Tensor", "Tensor | None"]:
    """Embed the empty prompt as the family's own pipeline does: [1, 77, context], and pooled [1, channels] or None."""
    import torch

    with torch.inference_mode():
        first = _encode_nothing(folder, "text_encoder", "tokenizer", projected=False)
        if not two_encoders:
            return first.last_hidden_state, None
        second = _encode_nothing(folder, "text_encoder_2", "tokenizer_2", projected=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return hidden, second.text_embeds


def _encode_nothing(folder: Path, encoder: str, tokenizer: str, projected: bool) -> Any:
    _quiet()
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from diffseg.weights import weight_files

    words = CLIPTokenizer.from_pretrained(folder / tokenizer)
    tokens = words("", padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    variant = "fp16" if ".fp16" in weight_files(folder, encoder)[0].name else None
    model = kind.from_pretrained(folder / encoder, dtype=torch.float32, use_safetensors=True, variant=variant).eval()
    return model(tokens, output_hidden_states=True)


def _quiet() -> None:
    """To be called before the first import of either library."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks of a missing torchvision
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # and it of every change of precision
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of a few files


def _fill(part: "nn.Module", folder: Path, name: str) -> "nn.Module":
    """Give a part built on the meta device its weights, reading only those it has a place for."""
    from safetensors import safe_open

    from diffseg.weights import weight_files

    wanted = set(part.state_dict())
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, name):
        with safe_open(path, framework="pt") as file:
            state |= {modern: file.get_tensor(key) for key in file.keys() if (modern := _modern(key)) in wanted}  # noqa: SIM118
    if missing := sorted(wanted - set(state)):
        raise ValueError(f"{folder / name} lacks {len(missing)} of its {len(wanted)} tensors, {missing[0]} first")
    part.load_state_dict(state, assign=True)
    return part.requires_grad_(False)


def _modern(key: str) -> str:
    """Rename the attention of VAEs saved before 2023, as those of SD 1 are."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return key


def __getattr__(name: str) -> Any:
    if name != "Backend":
        raise AttributeError(f"module 'diffseg.backends' has no attribute {name!r}")
    from diffseg.model import Backend

    return Backend
