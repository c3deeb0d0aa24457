"""UNets and encoders with random weights in the exact layout of a named model, to measure their speed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffseg.config import SegmentConfig
from diffseg.models.files import ModelFiles
from diffseg.models.specs import BACKENDS, table
from diffseg.models.unet.backend import Backend, Parts
from diffseg.models.unet.loading import new_part
from diffseg.models.unet.recognise import LATENT_SCALE, attention_levels

Settings = Mapping[str, Any]
CONTEXT = 77  # tokens of a prompt


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shapes of a model: settings of its parts as diffusers names them."""

    unet: Settings
    vae: Settings

    @property
    def pooled(self) -> int | None:
        """Channels of the prompt as one vector, where the family adds it to six embedded sizes."""
        added = self.unet.get("projection_class_embeddings_input_dim")
        return added and added - 6 * self.unet["addition_time_embed_dim"]


_VAES = table("layouts", "vae")
LAYOUTS: Mapping[str, Layout] = {
    name: Layout(unet=unet, vae=_VAES[name]) for name, unet in table("layouts", "unet").items()
}


def layout_of(name: str) -> Layout:
    """Raises ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"no layout is known for {name!r}; possible are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def random_backend(name: str, config: SegmentConfig | None = None, device: torch.device | str | None = None) -> Backend:
    """A named model with random weights, in memory only: to measure its cost without a download.

    Raises ValueError for a name that is not in the table.
    """
    layout = layout_of(name)
    unet = new_part(layout.unet, "meta")
    vae: Any = new_part(layout.vae, "meta")
    vae.decoder = vae.post_quant_conv = None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for part in (unet, vae):
            fill_at_random(part.to_empty(device=device or "cpu"))
        hidden = torch.randn(1, CONTEXT, layout.unet["cross_attention_dim"])
        pooled = torch.randn(1, layout.pooled) if layout.pooled else None
    size = layout.unet["sample_size"] * LATENT_SCALE
    spec = replace(BACKENDS[name], image_size=size, levels=attention_levels(layout.unet))
    files = ModelFiles(f"{name}, random weights", Path(), None, "")
    resolved = (config or SegmentConfig()).resolve(spec)
    return Backend(files, spec, resolved, Parts(unet, vae, hidden, pooled), device)


def fill_at_random(part: nn.Module) -> None:
    """Fill with random weights that neither vanish nor explode; faster than the layers' own initialisation."""
    for name, weight in part.requires_grad_(False).named_parameters():
        if weight.dim() > 1:
            bound = weight[0].numel() ** -0.5
            weight.uniform_(-bound, bound)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
