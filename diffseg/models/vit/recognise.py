"""Vision transformers, recognised by their `config.json` and read by their `preprocessor_config.json`. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.models.recognise import is_number, override, read_json
from diffseg.models.specs import CONFIG, SIDE, VITS, ViTSpec

if TYPE_CHECKING:
    from diffseg.models.files import ModelFiles

DINOV2 = VITS["dinov2-small"]
PREPROCESSOR = "preprocessor_config.json"
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
POSSIBLE = f"possible are vision transformers of the kinds {', '.join(KINDS)}"
PATCHES = {"dinov2": 14}  # where a configuration leaves it out; the others: 16
OF_ATTENTION = {  # what is applied, or changes nothing outside training
    *("num_attention_heads", "attention_probs_dropout_prob", "attention_dropout", "qkv_bias"),
    *("output_attentions", "attn_implementation"),
}


def recognise_vit(files: "ModelFiles") -> ViTSpec:
    """Recognise a vision transformer. Raises ValueError that says what the folder is instead."""
    config = read_json(files.folder / CONFIG)
    if fault := unsupported(config):
        raise ValueError(f"{files.name} {fault}; {POSSIBLE}")
    table = VITS.get(files.name)
    patch, width, depth = _patch(config), config.get("hidden_size"), config.get("num_hidden_layers", 12)
    width = width or (384 if config["model_type"] == "dinov3_vit" else 768)
    if table and (table.unit, table.width, table.depth) != (patch, width, depth):
        raise ValueError(
            f"what lies there is not {files.name}: it has patches of {patch} pixels, {width} channels, {depth} layers"
        )
    spec = replace(
        table or ViTSpec(name=files.name, licence="unknown"),
        unit=patch,
        width=width,
        depth=depth,
        registers=_registers(config),
        layers=max(1, depth // 2),
        image_size=SIDE * patch,
        **normalisation(files.folder / PREPROCESSOR),
    )
    own: ViTSpec = override(spec, files.folder)
    if not isinstance(own.layers, int) or not 1 <= own.layers <= depth:
        raise ValueError(f"{files.name}: diffseg.json takes the last {own.layers!r} layers, and there are {depth}")
    return own


def reading(spec: ViTSpec) -> list[Any]:
    """What decides labels beside the files and the resolved configuration."""
    return [spec.layers, spec.rescale, spec.mean, spec.std]


def unsupported(config: Mapping[str, Any]) -> str | None:
    """What a model is, by its `config.json`, where it cannot be used; None where it can."""
    if (kind := config.get("model_type")) not in KINDS:
        return f"is a model of the kind {kind}, whose attention is not read here ({CONFIG})"
    if config.get("quantization_config"):
        return f"has quantised weights ({CONFIG})"
    if (channels := config.get("num_channels", 3)) != 3:
        return f"takes {channels} channels where an image has 3 ({CONFIG})"
    counts = {
        "num_hidden_layers": config.get("num_hidden_layers", 12),
        "num_attention_heads": config.get("num_attention_heads", 12),
        "hidden_size": config.get("hidden_size", 768),
        "patch_size": _patch(config),
    }
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return f"has a {name} of {config.get(name)!r}, so no self-attention to read segments from ({CONFIG})"
    if not isinstance(_registers(config), int) or _registers(config) < 0:
        return f"has a num_register_tokens of {config['num_register_tokens']!r} ({CONFIG})"
    side = config.get("image_size", 224)
    if isinstance(side, list) and len(set(side)) > 1:
        return f"has a position table that is no square: image_size {side} ({CONFIG})"
    known = OF_ATTENTION | ({"rope_theta"} if kind == "dinov3_vit" else set())
    for key in sorted(key for key in config.keys() - known if not key.startswith("_")):
        if config[key] not in (None, False) and any(
            word in key for word in ("attention", "attn", "qk", "rope", "window")
        ):
            return f"says {key} of its attention ({CONFIG}), which is not known here"
    return None


def _patch(config: Mapping[str, Any]) -> Any:
    """The side of a patch; None where it is no square."""
    patch = config.get("patch_size", PATCHES.get(config["model_type"], 16))
    return patch if not isinstance(patch, list) else patch[0] if patch and len(set(patch)) == 1 else None


def _registers(config: Mapping[str, Any]) -> Any:
    absent = {"dinov2_with_registers": 4}.get(config["model_type"], 0)
    return 0 if config["model_type"] == "dinov2" else config.get("num_register_tokens", absent)


def normalisation(path: Path) -> dict[str, Any]:
    """Mean, deviation and scale of the input; sizes and crops in the file are not taken, images keep their aspect.

    Absent, `ViTSpec` has the published values. Raises ValueError for senseless ones.
    """
    if not path.is_file():
        return {}
    said = read_json(path)
    if flag := next((flag for flag in ("do_flip_channel_order", "do_grayscale") if said.get(flag)), None):
        raise ValueError(f"{path} asks for {flag}, which is not known here")
    values: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for name, least in (("mean", -float("inf")), ("std", 0.0)):
        if said.get("do_normalize", True):
            numbers = said.get(f"image_{name}", getattr(DINOV2, name))
            if not (isinstance(numbers, list | tuple) and len(numbers) == 3 and all(map(is_number, numbers))):
                raise ValueError(f"{path} says image_{name} = {numbers!r}, which should be three numbers")
            if min(numbers) <= least:
                raise ValueError(f"{path} says image_{name} = {numbers!r}, which should be positive")
            values[name] = tuple(map(float, numbers))
    rescale = said.get("rescale_factor", DINOV2.rescale) if said.get("do_rescale", True) else 1.0
    if not is_number(rescale) or rescale <= 0:
        raise ValueError(f"{path} says rescale_factor = {rescale!r}, which should be a positive number")
    return values | {"rescale": float(rescale)}
