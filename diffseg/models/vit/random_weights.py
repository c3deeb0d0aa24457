"""Vision transformers with random weights in the exact layout of a named model, saved as transformers saves them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffseg.config import SegmentConfig
from diffseg.models.device import Device
from diffseg.models.files import ModelFiles
from diffseg.models.specs import VITS
from diffseg.models.vit.architectures import layout_of
from diffseg.models.vit.backend import Backend
from diffseg.models.vit.loading import new_vit
from diffseg.models.vit.recognise import PREPROCESSOR


def random_checkpoint(name: str, folder: Path | str, *, small: bool = False, seed: int = 0) -> Path:
    """Save random weights; see `diffseg.models.load.random_checkpoint`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = new_vit(layout_of(name, small))
    model.save_pretrained(folder, safe_serialization=True)
    spec = VITS["dinov2-small"]
    said = {"do_normalize": True, "image_mean": spec.mean, "image_std": spec.std, "rescale_factor": spec.rescale}
    (Path(folder) / PREPROCESSOR).write_text(json.dumps(said, indent=2) + "\n")
    return Path(folder)


def random_backend(name: str, config: SegmentConfig | None, device: Device, *, small: bool = False) -> Backend:
    """A named model with random weights, in memory only; see `diffseg.models.load.random_backend`."""
    layout = layout_of(name, small)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_vit(layout, str(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    spec = replace(VITS[name], width=layout["hidden_size"], depth=layout["num_hidden_layers"])
    files = ModelFiles(f"{name}, random weights", Path(), None, "")
    return Backend(files, spec, (config or SegmentConfig()).resolve(spec), model.requires_grad_(False), device)
