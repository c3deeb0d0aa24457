"""Checkpoints with random weights in the exact layout of a named model, saved as diffusers saves them.

They prove loading and measure speed without a download; the embedded model starts its training from one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffseg.backends import BACKENDS, LATENT_SCALE, OVERRIDES, attention_levels, new_part, new_text_encoder
from diffseg.config import SegmentConfig
from diffseg.model import Backend, Parts
from diffseg.weights import ModelFiles

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
CLIP_L: Settings = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_H: Settings = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_G: Settings = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER: Settings = {  # no label depends on it; a pipeline wants it in the folder
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
VOCABULARY = 49408  # of every CLIP; its last two tokens begin and end a text
CONTEXT = 77  # tokens of a prompt


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shapes of a checkpoint: settings of its parts as diffusers and transformers name them.

    padding: the token that fills a prompt up, one a text encoder: the end token in SD 1, "!" in OpenCLIP's.
    """

    unet: Settings
    vae: Settings
    text: tuple[Settings, ...] = (CLIP_L,)
    padding: tuple[str, ...] = ("<|endoftext|>",)
    vocabulary: int = VOCABULARY
    pipeline: str = "StableDiffusionPipeline"


SD1 = Layout(unet=SD_UNET, vae=VAE)
SD2 = Layout(unet=SD2_UNET, vae=VAE, text=(CLIP_H,), padding=("!",))
SDXL = Layout(
    unet=SDXL_UNET,
    vae={**VAE, "scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True},
    text=(CLIP_L, CLIP_G),
    padding=("<|endoftext|>", "!"),
    pipeline="StableDiffusionXLPipeline",
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
    text=({**CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1},),
    vocabulary=1000,
)
NARROW = {"block_out_channels": [32, 64, 64, 64], "attention_head_dim": [2, 4, 4, 4], "norm_num_groups": 16}
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


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model before they are saved: all there is in a Stable Diffusion folder."""

    layout: Layout
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]

    def save(self, folder: Path, dtype: torch.dtype = torch.float32, own: Settings | None = None) -> Path:
        """Write a folder that diffusers' pipelines and `fetch` both read.

        own: what the model brings for `SegmentConfig` (thresholds, timestep, image_size, dtype).
        """
        parts = {"unet": self.unet, "vae": self.vae} | {
            f"text_encoder{suffix}": part for suffix, part in zip(("", "_2"), self.text_encoders, strict=False)
        }
        for name, part in parts.items():
            saved: Any = part.to(dtype)
            saved.save_pretrained(folder / name, safe_serialization=True)
        for suffix, padding in zip(("", "_2"), self.layout.padding, strict=False):
            _write_tokenizer(folder / f"tokenizer{suffix}", self.layout.vocabulary, padding)
        _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
        _write_json(folder / "model_index.json", _index(self.layout))
        if own is not None:
            _write_json(folder / OVERRIDES, own)
        return folder


def build(layout: Layout, seed: int = 0) -> Checkpoint:
    """Random weights in the shapes of a layout; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = tuple(
            new_text_encoder({**settings, "vocab_size": layout.vocabulary}, projected=second > 0)
            for second, settings in enumerate(layout.text)
        )
        return Checkpoint(layout, new_part(layout.unet), new_part(layout.vae), text)


def random_checkpoint(name: str, folder: Path | str, *, small: bool = False, seed: int = 0) -> Path:
    """Save random weights in the layout of a named model.

    small: the same blocks, layers and conditions with a few channels, for tests: a few MB.
    Raises ValueError for a name that is not in the table.
    """
    return build(layout_of(name, small), seed).save(Path(folder))


def random_backend(
    name: str, config: SegmentConfig | None = None, device: torch.device | str | None = None, *, small: bool = False
) -> Backend:
    """A named model with random weights, in memory only: its exact cost without its download.

    Raises ValueError for a name that is not in the table.
    """
    layout = layout_of(name, small)
    unet = new_part(layout.unet, "meta")
    vae: Any = new_part(layout.vae, "meta")
    vae.decoder = vae.post_quant_conv = None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for part in (unet, vae):
            fill_at_random(part.to_empty(device=device or "cpu"))
        hidden = torch.randn(1, CONTEXT, layout.unet["cross_attention_dim"])
        pooled = torch.randn(1, layout.text[1]["projection_dim"]) if len(layout.text) == 2 else None
    size = layout.unet["sample_size"] * LATENT_SCALE
    spec = replace(BACKENDS[name], image_size=size, levels=attention_levels(layout.unet))
    files = ModelFiles(f"{name}, random weights", Path(), None, "")
    return Backend(files, spec, config or SegmentConfig(), Parts(unet, vae, hidden, pooled), device)


def layout_of(name: str, small: bool = False) -> Layout:
    """Raises ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"no layout is known for {name!r}; possible are {', '.join(LAYOUTS)}")
    return narrow(LAYOUTS[name]) if small else LAYOUTS[name]


def narrow(layout: Layout) -> Layout:
    """The same layout with few channels, a small vocabulary and a quarter of the pixels a side."""
    text = tuple(
        {**settings, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"projection_dim": 32}
        for settings in layout.text
    )
    blocks = len(layout.unet["block_out_channels"])
    unet = {
        **layout.unet,
        **{key: value[:blocks] if isinstance(value, list) else value for key, value in NARROW.items()},
    }
    unet |= {"sample_size": layout.unet["sample_size"] // 4, "cross_attention_dim": 32 * len(text)}
    if "addition_time_embed_dim" in unet:
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8}
    vae = {**layout.vae, "block_out_channels": [8, 16, 32, 32], "norm_num_groups": 4}
    return replace(layout, unet=unet, vae=vae, text=text, vocabulary=1000)


def fill_at_random(part: nn.Module) -> None:
    """Weights that neither vanish nor explode; quicker than each layer's own way to begin."""
    for name, weight in part.requires_grad_(False).named_parameters():
        if weight.dim() > 1:
            bound = weight[0].numel() ** -0.5
            weight.uniform_(-bound, bound)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)


def _write_tokenizer(folder: Path, vocabulary: int, padding: str) -> None:
    """A vocabulary with the places of CLIP's that the empty prompt uses: "!" first, begin and end last."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [f"<|unused{place}|>" for place in range(len(words), vocabulary - 2)] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": padding,
    }
    _write_json(folder / "vocab.json", {word: place for place, word in enumerate(words)})
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(
        folder / "special_tokens_map.json", {key: word for key, word in settings.items() if "token" in key[-5:]}
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _index(layout: Layout) -> Settings:
    index: dict[str, Any] = {
        "_class_name": layout.pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if len(layout.text) == 2:
        return index | {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None]}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
