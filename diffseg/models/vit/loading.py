"""Loading of vision transformers through transformers; how weights come into one: `diffseg.models.parts`.

Importing this needs no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.models.files import ModelFiles
from diffseg.models.parts import fill, first_line, fitting, locations, quiet
from diffseg.models.recognise import read_json
from diffseg.models.specs import CONFIG

if TYPE_CHECKING:
    from torch import nn

UNUSED = r"classifier\..*"  # the head of a classifier
RENAMED = (  # by transformers 5
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    (".weights_out.", ".down_proj."),
)
PREFIXES = ("dinov2.", "dinov2_with_registers.", "model.")  # of the model in a classifier's files, of DINOv3's layers


def new_vit(settings: Mapping[str, Any], device: str = "cpu") -> "nn.Module":
    """Build a vision transformer from its configuration, with the random weights transformers starts from.

    On the "meta" device it takes no memory and has no weights yet.
    """
    quiet()
    import torch
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
    )

    kinds: dict[str, Any] = {
        "dinov2": (Dinov2Config, Dinov2Model),
        "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
        "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel),
    }
    config, kind = kinds[settings["model_type"]]
    answers = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    with torch.device(device):
        model: nn.Module = kind(config(**{**settings, **answers}))
    renew_positions(model)
    return model.eval()


def renew_positions(model: "nn.Module") -> None:
    """Compute the frequencies of DINOv3's rotary positions, which lie in no file and are float32 in every precision."""
    vit: Any = model
    if hasattr(vit, "rope_embeddings"):
        vit.rope_embeddings = type(vit.rope_embeddings)(vit.config).eval()


def check_vit(files: ModelFiles) -> None:
    """Compare a recognised model with the headers of its files. Raises ValueError as loading would."""
    locations(_blank(files.folder), files.folder, "", modern_name, UNUSED)


def read_vit(folder: Path) -> "nn.Module":
    """Load a fetched model, in the precision of its files.

    Raises ValueError for weights that are missing, unknown, of another shape, or no numbers.
    """
    return fill(_blank(folder), folder, "", modern_name, UNUSED)


def modern_name(key: str) -> str:
    """The current name of a tensor, without a prefix."""
    for old, new in RENAMED:
        key = key.replace(old, new)
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _blank(folder: Path) -> "nn.Module":
    """A model as its configuration describes it, on the meta device."""
    settings = fitting(read_json(folder / CONFIG), folder, "")
    try:
        return new_vit(settings, "meta")
    except Exception as error:  # what transformers raises on settings that contradict each other is its to choose
        fault = f"describes no model: {type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{folder / CONFIG} {fault}") from error
