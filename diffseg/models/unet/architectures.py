"""Architectures: the exact shapes of each family, as diffusers names them, without weights.

No torch: models are built from these settings, and the table of backends is checked against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffseg.models.specs import table

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
