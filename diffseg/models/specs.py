"""What is known about each model, as data. No torch: a command that only plans reads it too."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from diffseg.config import Dtype, ModelDefaults

OVERRIDES = (
    "diffseg.json"  # in a model's folder: its own thresholds, cut, image_size, dtype; timestep, or layers of a ViT
)
CONFIG = "config.json"  # of a vision transformer; the parts of a diffusion model have one each in their folders


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec(ModelDefaults):
    """One model as data.

    levels: (side of the attention grid at `image_size`, self-attention layers on it), finest first.
    """

    repo: str | None = None
    licence: str  # as the hub names it
    image_size: int = 512  # pixels it was trained at
    levels: tuple[tuple[int, int], ...] = ((64, 5), (32, 5), (16, 5), (8, 1))
    context: int = 768  # width of the text embedding
    added_conditions: bool = False  # pooled text and six sizes beside the prompt, as SDXL has it
    vae_scaling: float = 0.18215
    vae_mean: tuple[float, ...] = ()  # of the latents, a channel or for all; none: they are scaled alone
    vae_std: tuple[float, ...] = ()
    vae_upcast: bool = False  # the encoder overflows float16 and then runs in float32
    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1)  # published for SD 1.4 on COCO-Stuff; not tuned for the others
    cut: float = 1.1  # not tuned either
    timestep: int = 300
    unit: int = 64  # eight pixels a latent cell, and three halvings of the latent inside the UNet
    dtype: Dtype = "bfloat16"  # its range fits every family; on a processor name float32, it has no fast bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTSpec(ModelDefaults):
    """One vision transformer as data.

    layers: the last self-attention layers, whose mean is taken: half of them, the early ones see textures.
    mean, std: of its input, for pixels 0..255 times `rescale`.
    """

    repo: str | None = None
    licence: str
    width: int = 384  # channels of a token
    depth: int = 12  # layers there are
    registers: int = 0  # tokens beside the class token and the patches
    layers: int = 6
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # published for both families, of ImageNet's training photos
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    rescale: float = 1 / 255
    image_size: int = 518  # layers, size and thresholds: chosen for dinov2-small on 50 photos of BSDS500
    thresholds: tuple[float, ...] = (0.3, 0.3, 0.3)
    cut: float = 0.45
    timestep: None = None
    unit: int = 14  # the side of a patch, which is a cell
    dtype: Dtype = "float32"  # every machine is fast enough for it, and labels are the same on all


Spec = BackendSpec | ViTSpec
SIDE = 37  # patches a side of the square that a ViT sees: what DINOv2 was trained at last


@cache
def _read(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("diffseg.models") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


def table(name: str, kind: str) -> dict[str, Any]:
    """A table of `data`, by model. A model that is `like` an earlier one has what it does not say itself from there."""
    found: dict[str, Any] = {}
    for model, own in _read(name)[kind].items():
        found[model] = found.get(own.get("like", ""), {}) | {key: own[key] for key in own if key != "like"}
    return found


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _specs(kind: Any, name: str) -> dict[str, Any]:
    return {
        model: kind(name=model, **{key: _frozen(value) for key, value in own.items()})
        for model, own in table("models", name).items()
    }


BACKENDS: Mapping[str, BackendSpec] = _specs(BackendSpec, "unet")
VITS: Mapping[str, ViTSpec] = _specs(ViTSpec, "vit")
MODELS: Mapping[str, Spec] = {**BACKENDS, **VITS}


def licence_of(model: str) -> str:
    """The licence of a model by its name or hub id, whatever the revision; `unknown` for any other."""
    repo = model.partition("@")[0]
    return next((spec.licence for spec in MODELS.values() if spec.name == model or spec.repo == repo), "unknown")
