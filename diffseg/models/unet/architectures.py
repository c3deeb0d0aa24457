"""Architectures: the exact shapes of each family, as diffusers names them, without weights.

No torch: models are built from these settings, and the table of backends is checked against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Settings = Mapping[str, Any]

SD_UNET: Settings = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,  # in this field diffusers keeps the number of heads
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
SD2_UNET: Settings = {
    **SD_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_UNET: Settings = {
    **SD_UNET,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SSD_1B_UNET: Settings = {
    **SDXL_UNET,
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
VAE: Settings = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
CONTEXT = 77  # tokens of a prompt


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shapes of a model: settings of its parts as diffusers names them.

    pooled: channels of the prompt as one vector, where the family adds it.
    """

    unet: Settings
    vae: Settings
    pooled: int | None = None


SD1 = Layout(unet=SD_UNET, vae=VAE)
SD2 = Layout(unet=SD2_UNET, vae=VAE)
SDXL = Layout(
    unet=SDXL_UNET,
    vae={**VAE, "scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True},
    pooled=1280,
)
TINY = Layout(
    unet={
        **SD_UNET,
        "sample_size": 32,
        "block_out_channels": [32, 64, 96, 96],
        "layers_per_block": 1,
        "attention_head_dim": [1, 2, 3, 3],
        "cross_attention_dim": 64,
        "norm_num_groups": 16,
    },
    vae={**VAE, "block_out_channels": [8, 16, 32, 64], "layers_per_block": 1, "norm_num_groups": 1, "sample_size": 256},
)
LAYOUTS: Mapping[str, Layout] = {
    "sd1.4": SD1,
    "sd1.5": SD1,
    "sd2.1-base": SD2,
    "sd2.1": replace(SD2, unet={**SD2_UNET, "sample_size": 96}),
    "sd-turbo": SD2,
    "sdxl": SDXL,
    "ssd-1b": replace(SDXL, unet=SSD_1B_UNET),
    "tiny": TINY,
}


def layout_of(name: str) -> Layout:
    """Raises ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"no layout is known for {name!r}; possible are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
