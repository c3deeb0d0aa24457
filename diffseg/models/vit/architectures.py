"""Architectures: the exact shapes of each vision transformer, as transformers names them, without weights. No torch.

Layouts without a name of their own in the table of models are there for tests: every kind that is recognised.
"""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

DINOV2: Settings = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
DINOV3: Settings = {
    "model_type": "dinov3_vit",
    "architectures": ["DINOv3ViTModel"],
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 16,
    "num_register_tokens": 4,
}
BASE: Settings = {"hidden_size": 768, "num_attention_heads": 12}
LARGE: Settings = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
GIANT: Settings = {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": True}
REGISTERS: Settings = {
    "model_type": "dinov2_with_registers",
    "architectures": ["Dinov2WithRegistersModel"],
    "num_register_tokens": 4,
}
LAYOUTS: Mapping[str, Settings] = {
    "dinov2-small": DINOV2,
    "dinov2-base": {**DINOV2, **BASE},
    "dinov2-large": {**DINOV2, **LARGE},
    "dinov2-giant": {**DINOV2, **GIANT},
    "dinov2-with-registers-small": {**DINOV2, **REGISTERS},
    "dinov2-with-registers-giant": {**DINOV2, **GIANT, **REGISTERS},
    "dinov3-small": DINOV3,
    "dinov3-base": {**DINOV3, **BASE, "intermediate_size": 3072},
    "dinov3-large": {**DINOV3, **LARGE, "intermediate_size": 4096},
    "dinov3-small-plus": {**DINOV3, "use_gated_mlp": True},
}
NARROW: Settings = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "image_size": 112,
    "initializer_range": 0.12,  # with the usual 0.02 all attention of so few channels is flat
}


def layout_of(name: str, small: bool = False) -> Settings:
    """small: few channels and layers. Raises ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"no layout is known for {name!r}; possible are {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    narrow = {**NARROW, "intermediate_size": 64} if "intermediate_size" in layout else NARROW
    return {**layout, **narrow} if small else layout
