"""Checkpoints with random weights in the exact layout of a model, saved as diffusers and transformers save theirs.

Training of the embedded model starts from one; tests of loading use small ones in place of a download.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffseg.models.specs import OVERRIDES, VITS
from diffseg.models.unet.loading import new_part, new_text_encoder
from diffseg.models.unet.random_weights import CONTEXT, Layout, Settings, layout_of
from diffseg.models.vit.loading import new_vit
from diffseg.models.vit.random_weights import LAYOUTS as VITS_NAMED
from diffseg.models.vit.recognise import PREPROCESSOR

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
VOCABULARY = 49408  # of every CLIP; its last two tokens begin and end a text
OF_SD2: Mapping[str, Any] = {"text": (CLIP_H,), "padding": ("!",)}
OF_SDXL: Mapping[str, Any] = {
    "text": (CLIP_L, CLIP_G),
    "padding": ("<|endoftext|>", "!"),
    "pipeline": "StableDiffusionXLPipeline",
}
OF_TINY: Mapping[str, Any] = {
    "text": (
        {**CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1},
    ),
    "vocabulary": 1000,
}
TEXTS = {  # of a WholeLayout, by name, where it is not SD 1's
    "sd2.1-base": OF_SD2,
    "sd2.1": OF_SD2,
    "sd-turbo": OF_SD2,
    "sdxl": OF_SDXL,
    "ssd-1b": OF_SDXL,
    "tiny": OF_TINY,
}
NARROW = {"block_out_channels": [32, 64, 64, 64], "attention_head_dim": [2, 4, 4, 4], "norm_num_groups": 16}
NARROW_VIT: Settings = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "image_size": 112,
    "initializer_range": 0.12,  # with the usual 0.02 all attention of so few channels is flat
}
REGISTERS: Settings = {
    "model_type": "dinov2_with_registers",
    "architectures": ["Dinov2WithRegistersModel"],
    "num_register_tokens": 4,
}
VIT_LAYOUTS: Mapping[str, Settings] = {  # every kind that is recognised
    **VITS_NAMED,
    "dinov2-with-registers-small": {**VITS_NAMED["dinov2-small"], **REGISTERS},
    "dinov2-with-registers-giant": {**VITS_NAMED["dinov2-giant"], **REGISTERS},
    "dinov3-small-plus": {**VITS_NAMED["dinov3-small"], "use_gated_mlp": True},
}


@dataclass(frozen=True, kw_only=True)
class WholeLayout(Layout):
    """A layout with its text encoders, as transformers names their settings.

    padding: the padding token of prompts, one per text encoder: the end token in SD 1, "!" in OpenCLIP's.
    """

    text: tuple[Settings, ...] = (CLIP_L,)
    padding: tuple[str, ...] = ("<|endoftext|>",)
    vocabulary: int = VOCABULARY
    pipeline: str = "StableDiffusionPipeline"


def whole(name: str) -> WholeLayout:
    """The layout of a named model. Raises ValueError for a name that is not in the table."""
    return WholeLayout(**vars(layout_of(name)), **TEXTS.get(name, {}))


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model before they are saved as a Stable Diffusion folder."""

    layout: WholeLayout
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


def build(layout: WholeLayout, seed: int = 0) -> Checkpoint:
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
    if name not in VIT_LAYOUTS:
        layout = whole(name)
        return build(narrow(layout) if small else layout, seed).save(Path(folder))
    settings = VIT_LAYOUTS[name]
    few = {**NARROW_VIT, "intermediate_size": 64} if "intermediate_size" in settings else NARROW_VIT
    return _vit({**settings, **few} if small else settings, Path(folder), seed)


def with_small_encoder(folder: Path, seed: int = 0) -> Path:
    """The checkpoint with an AutoencoderTiny of random weights in the place of its encoder, as TAESD is."""
    shutil.rmtree(folder / "vae")
    blocks = {f"{part}_block_out_channels": [16] * 4 for part in ("encoder", "decoder")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: Any = new_part({"_class_name": "AutoencoderTiny", "scaling_factor": 1.0, **blocks})
    encoder.save_pretrained(folder / "vae", safe_serialization=True)
    return folder


def narrow(layout: WholeLayout) -> WholeLayout:
    """A layout with fewer channels, a small vocabulary and a quarter of the pixels a side."""
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


def _vit(settings: Settings, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = new_vit(settings)
    model.save_pretrained(folder, safe_serialization=True)
    spec = VITS["dinov2-small"]
    said = {"do_normalize": True, "image_mean": spec.mean, "image_std": spec.std, "rescale_factor": spec.rescale}
    (folder / PREPROCESSOR).write_text(json.dumps(said, indent=2) + "\n")
    return folder


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


def _index(layout: WholeLayout) -> Settings:
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
