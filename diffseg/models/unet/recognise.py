"""UNets of the Stable Diffusion families, recognised by the configurations of their parts. No torch.

Of the scheduler only its kind matters, since no noise is added and the one output is not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.models.recognise import is_number, override, read_json
from diffseg.models.specs import BACKENDS, BackendSpec

if TYPE_CHECKING:
    from diffseg.models.files import ModelFiles

LATENT_SCALE = 8  # image pixels a latent cell, in every family
TIMES = 1000  # diffusion times of every family: what `timestep` counts in
SCHEDULER = "scheduler/scheduler_config.json"
OF_LATENTS = {"latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std"}  # all that is known
VAES = {"AutoencoderKL": "", "AutoencoderTiny": "encoder_"}  # with what stands before the widths of their encoders
FOR_IMAGES = {"latent_magnitude", "latent_shift", "upsampling_scaling_factor"}  # of the latter: not of its encoder
LAYOUTS = "possible are text-to-image checkpoints of the SD 1.x, 2.x and SDXL layouts"


def recognise_unet(files: "ModelFiles") -> BackendSpec:
    """Recognise a UNet by the configurations of its parts. Raises ValueError that says what the folder is instead."""
    unet = read_json(files.folder / "unet" / "config.json")
    vae = read_json(files.folder / "vae" / "config.json")
    added_conditions = unet.get("addition_embed_type") == "text_time"
    if added_conditions and not (files.folder / "text_encoder_2").is_dir():
        raise ValueError(f"{files.name} has the layout of SDXL, which needs a text_encoder_2 and has none")
    texts = [text_settings(files.folder, part) for part in ("text_encoder", "text_encoder_2")[: 1 + added_conditions]]
    try:
        fault = _unsupported_unet(unet) or _unsupported_vae(unet, vae) or _unsupported_texts(unet, texts)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        fault = f"has configurations that describe no model ({type(error).__name__}: {error})"
    if fault or (fault := _unsupported_scheduler(files.folder / SCHEDULER)):
        raise ValueError(f"{files.name} {fault}; {LAYOUTS}")
    table, levels = BACKENDS.get(files.name), attention_levels(unet)
    context, counts = unet["cross_attention_dim"], [count for _, count in levels]
    if table and table.repo and (table.context, [count for _, count in table.levels]) != (context, counts):
        raise ValueError(f"what lies there is not {files.name}: its UNet has another layout (levels {levels})")
    spec = replace(
        table or BackendSpec(name=files.name, licence="unknown"),
        image_size=unet["sample_size"] * LATENT_SCALE,
        levels=levels,
        context=context,
        added_conditions=added_conditions,
        vae_upcast=added_conditions and vae.get("force_upcast", True),
        **_latents(files.name, vae),
    )
    recognised: BackendSpec = override(spec, files.folder)
    return recognised


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


def text_settings(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a text encoder, taken out of that of a whole CLIP where the folder has one."""
    whole = read_json(folder / part / "config.json")
    text = whole.get("text_config")
    return text if isinstance(text, dict) else whole


def norms_latents(vae: Mapping[str, Any]) -> bool:
    """Whether latents are shifted or standardised, not only scaled."""
    return any(vae.get(key) for key in ("shift_factor", "latents_mean", "latents_std"))


def _per_block(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def _unsupported_unet(unet: Mapping[str, Any]) -> str | None:
    kind, side = unet.get("_class_name"), unet.get("sample_size")
    if kind != "UNet2DConditionModel":
        return f"has no UNet2DConditionModel but {kind} (unet/config.json)"
    if missing := [key for key in ("sample_size", "cross_attention_dim", "down_block_types") if not unet.get(key)]:
        return f"has an unet/config.json that says nothing of {', '.join(missing)}"
    if not isinstance(side, int) or side < LATENT_SCALE or side % LATENT_SCALE:
        return f"has a sample_size of {side!r} (unet/config.json), which is no multiple of {LATENT_SCALE} cells"
    if unet.get("only_cross_attention") not in (None, False) or not attention_levels(unet):
        return "has no self-attention to read segments from"
    wanted = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim")
    if unet.get("addition_embed_type") not in (None, "text_time") or any(unet.get(key) is not None for key in wanted):
        return "wants conditions beside the prompt that are not known here"
    return None


def _unsupported_vae(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> str | None:
    kind, channels, given = vae.get("_class_name"), unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if kind not in VAES:
        return f"has no {' or '.join(VAES)} but {kind} (vae/config.json)"
    if channels != given:
        return f"takes {channels} latent channels where its encoder gives {given} (inpainting, depth, upscaling?)"
    if vae.get("in_channels", 3) != 3:
        return f"has an encoder of {vae['in_channels']} channels where an image has 3 (vae/config.json)"
    if (scale := 1 << len(vae.get(f"{VAES[kind]}block_out_channels", (64,))) - 1) != LATENT_SCALE:
        return f"has an encoder that shrinks images by {scale}, not by {LATENT_SCALE} (vae/config.json)"
    if not isinstance(vae.get("force_upcast", True), bool):
        return f"has a force_upcast of {vae['force_upcast']!r} (vae/config.json), which is neither true nor false"
    words = ("latent", "scal", "shift")
    for key in sorted(key for key in vae.keys() - OF_LATENTS - FOR_IMAGES if any(word in key for word in words)):
        if vae[key] is not None:
            return f"says {key} of its latents (vae/config.json), which is not known here"
    return None


def _unsupported_texts(unet: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]) -> str | None:
    for text in texts:
        if (kind := text.get("model_type", "clip_text_model")) not in ("clip_text_model", "clip"):
            return f"has a text encoder that is no CLIP but {kind} (text_encoder/config.json)"
    width = sum(text.get("hidden_size", 512) for text in texts)  # absent means 512 in transformers
    if width != unet["cross_attention_dim"]:
        return f"has a UNet for prompts {unet['cross_attention_dim']} wide and text encoders that give {width}"
    if len(texts) == 2:
        added = texts[1].get("projection_dim", 512) + 6 * unet["addition_time_embed_dim"]
        if added != unet["projection_class_embeddings_input_dim"]:
            return (
                f"has a UNet for {unet['projection_class_embeddings_input_dim']} added conditions and {added} to give"
            )
    return None


def _unsupported_scheduler(path: Path) -> str | None:
    """A model conditioned on noise levels in place of times cannot use `timestep`."""
    scheduler = read_json(path) if path.is_file() else {}
    kind, times = str(scheduler.get("_class_name")), scheduler.get("num_train_timesteps", TIMES)
    if kind.startswith(("EDM", "FlowMatch")) or scheduler.get("prediction_type") == "flow_prediction":
        return f"is told noise levels, not times 0..{TIMES - 1} ({SCHEDULER}: {kind})"
    return None if times == TIMES else f"has {times} diffusion times, not {TIMES} ({SCHEDULER})"


def _latents(name: str, vae: Mapping[str, Any]) -> dict[str, Any]:
    """Scaling and shift from the encoder's output to the UNet's input. Raises ValueError for senseless values."""

    def check(key: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"{name}: vae/config.json says {key} = {vae[key]!r}, which should be {wanted}")

    usual = 1.0 if vae["_class_name"] == "AutoencoderTiny" else 0.18215  # absent in the oldest files: SD 1
    scaling, shift = vae.get("scaling_factor", usual), vae.get("shift_factor")
    check("scaling_factor", is_number(scaling) and scaling > 0, "a positive number")
    check("shift_factor", shift is None or is_number(shift), "a number or null")
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    if mean is None and std is None:
        mean, std = ([shift], [1]) if shift else ([], [])
    elif mean is None or std is None or shift:
        raise ValueError(f"{name}: vae/config.json says only one of latents_mean, latents_std, or shift_factor too")
    else:
        channels = vae.get("latent_channels", 4)
        for key in ("latents_mean", "latents_std"):
            numbers = vae[key]
            whole = isinstance(numbers, list) and len(numbers) == channels and all(map(is_number, numbers))
            check(
                key, whole and (key == "latents_mean" or min(numbers) > 0), f"{channels} numbers, deviations positive"
            )
    return {"vae_scaling": float(scaling), "vae_mean": tuple(map(float, mean)), "vae_std": tuple(map(float, std))}
