"""Checkpoints with random weights in the exact layout of a named model, saved as diffusers saves them.

Tests of loading and measurements of speed use them without a download; training of the embedded model starts from one.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffseg.config import SegmentConfig
from diffseg.models.files import ModelFiles
from diffseg.models.specs import BACKENDS, OVERRIDES
from diffseg.models.unet.architectures import CONTEXT, Layout, Settings, layout_of
from diffseg.models.unet.backend import Backend, Parts
from diffseg.models.unet.loading import new_part, new_text_encoder
from diffseg.models.unet.recognise import LATENT_SCALE, attention_levels

SCHEDULER: Settings = {  # no label depends on it; pipelines of diffusers require it in the folder
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model before they are saved as a Stable Diffusion folder."""

    layout: Layout
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]

    def save(self, folder: Path, dtype: torch.dtype = torch.float32, own: Settings | None = None) -> Path:
        """Write a folder that diffusers' pipelines and `fetch` both read.

        own: the model's defaults for `SegmentConfig` (thresholds, timestep, image_size, dtype).
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
    """Random weights in the shapes of a layout; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = tuple(
            new_text_encoder({**settings, "vocab_size": layout.vocabulary}, projected=second > 0)
            for second, settings in enumerate(layout.text)
        )
        return Checkpoint(layout, new_part(layout.unet), new_part(layout.vae), text)


def random_checkpoint(name: str, folder: Path | str, *, small: bool = False, seed: int = 0) -> Path:
    """Save random weights in the layout of a named model.

    small: all blocks, layers and conditions with a few channels, for tests: a few MB.
    Raises ValueError for a name that is not in the table.
    """
    return build(layout_of(name, small), seed).save(Path(folder))


def random_backend(
    name: str, config: SegmentConfig | None = None, device: torch.device | str | None = None, *, small: bool = False
) -> Backend:
    """A named model with random weights, in memory only: to measure its cost without a download.

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


def _write_tokenizer(folder: Path, vocabulary: int, padding: str) -> None:
    """A vocabulary with the places of CLIP's that the empty prompt uses: "!" first, begin and end last."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [f"<|unused{number}|>" for number in range(len(words), vocabulary - 2)] + [
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
    _write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
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
