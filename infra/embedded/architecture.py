"""Architecture of the embedded model, and its defaults for settings that a user leaves open."""

from dataclasses import replace
from typing import Any

from infra.embedded.checkpoints import WholeLayout, whole
from infra.embedded.encoder import AUTOENCODER

TINY = whole("tiny")
LAYOUT: WholeLayout = replace(
    TINY,
    unet={
        **TINY.unet,
        "sample_size": 32,
        "in_channels": AUTOENCODER["latent_channels"],
        "out_channels": AUTOENCODER["latent_channels"],
        "block_out_channels": [32, 64, 96, 128],
        "attention_head_dim": [1, 2, 3, 4],  # heads of 32 channels
        "norm_num_groups": 8,  # with the usual 32, a group of one channel would forget how strong contrasts are
    },
    text=tuple(
        {**text, "bos_token_id": TINY.vocabulary - 2, "eos_token_id": TINY.vocabulary - 1} for text in TINY.text
    ),
    vae={"_class_name": "AutoencoderKL", **AUTOENCODER},
)
DEFAULTS: dict[str, Any] = {"thresholds": [0.3, 0.3, 0.3], "timestep": 50, "image_size": 256, "dtype": "float32"}
