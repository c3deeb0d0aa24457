"""Architectures: the exact shapes of each vision transformer, as transformers names them, without weights. No torch."""

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
LAYOUTS: Mapping[str, Settings] = {
    "dinov2-small": DINOV2,
    "dinov2-base": {**DINOV2, **BASE},
    "dinov2-large": {**DINOV2, **LARGE},
    "dinov2-giant": {**DINOV2, **GIANT},
    "dinov3-small": DINOV3,
    "dinov3-base": {**DINOV3, **BASE, "intermediate_size": 3072},
    "dinov3-large": {**DINOV3, **LARGE, "intermediate_size": 4096},
}
