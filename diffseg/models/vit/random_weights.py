"""Vision transformers with random weights in the exact layout of a named model, to measure their speed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffseg.config import SegmentConfig
from diffseg.models.device import Device
from diffseg.models.files import ModelFiles
from diffseg.models.specs import VITS, table
from diffseg.models.vit.backend import Backend
from diffseg.models.vit.loading import new_vit

LAYOUTS: Mapping[str, Any] = table("layouts", "vit")  # by model, as transformers names them


def random_backend(name: str, config: SegmentConfig | None, device: Device) -> Backend:
    """A named model with random weights, in memory only; see `diffseg.models.load.random_backend`."""
    layout = LAYOUTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_vit(layout, str(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    spec = replace(VITS[name], width=layout["hidden_size"], depth=layout["num_hidden_layers"])
    files = ModelFiles(f"{name}, random weights", Path(), None, "")
    return Backend(files, spec, (config or SegmentConfig()).resolve(spec), model.requires_grad_(False), device)
