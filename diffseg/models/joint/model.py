"""A model of images and words in memory: texts and patches of an image become vectors of one space.

Letters: T texts, h w cells of the patches, D numbers of a vector.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffseg.models.device import Device
from diffseg.models.files import ModelFiles
from diffseg.models.parts import fill, first_line, quiet
from diffseg.models.recognise import named, read_json
from diffseg.models.specs import CONFIG
from diffseg.models.vit.recognise import PREPROCESSOR, normalisation
from diffseg.types import Float, UInt8

FINER = 2  # times the side that a model was trained at, for an image's shorter side: MaskCLIP gives 512 pixels for 224
TEXTS = 256  # a pass
SAID = ("image_mean", "image_std")  # families differ: no default is right


class JointModel:
    """A CLIP or SigLIP that is read densely: every patch gets a vector that compares with those of texts."""

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any, device: Device = None) -> None:
        """Take over a model of any precision; it runs in float32, on a GPU where there is one.

        Raises ValueError where its files do not say how images are normed.
        """
        self.files, self.tokenizer = files, tokenizer
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: Any = model.to(self.device, torch.float32)
        self.is_clip = self.model.config.model_type == "clip"
        path = files.folder / PREPROCESSOR
        if (said := read_json(path)).get("do_normalize", True) and not {*SAID} <= said.keys():
            raise ValueError(f"{path} does not say {' and '.join(SAID)}")
        norms = normalisation(path)
        self.rescale = norms["rescale"]
        self.mean, self.std = (torch.tensor(norms[each], device=self.device).view(3, 1, 1) for each in ("mean", "std"))
        if self.is_clip:
            last: Any = self.model.vision_model.encoder.layers[-1]
            last.self_attn = _ValuesOnly(last.self_attn)

    @classmethod
    def load(cls, files: ModelFiles, device: Device = None) -> "JointModel":
        """Load a fetched model. Raises ValueError for weights that are missing, unknown, or of another shape."""
        quiet()
        from transformers import AutoTokenizer

        with named(files):
            model = fill(_blank(files), files.folder, "", lambda key: key, r".*\bposition_ids")
            for part in model.modules():  # they lie in no file
                if isinstance(table := getattr(part, "position_embedding", None), nn.Embedding):
                    part.position_ids = torch.arange(table.num_embeddings)[None]
            try:
                tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
            except Exception as error:  # what transformers raises on files that do not fit each other is its to choose
                fault = f"{type(error).__name__}: {first_line(error)}"
                raise ValueError(f"{files.folder} has no tokenizer that can be read: {fault}") from error
            return cls(files, model, tokenizer, device)

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> Float[np.ndarray, "T D"]:
        """Vectors of texts, at length 1. Raises ValueError for one with more tokens than the model reads."""
        most = self.model.config.text_config.max_position_embeddings
        padding = {"padding": True} if self.is_clip else {"padding": "max_length", "max_length": most}  # as trained
        found: list[Tensor] = []
        for first in range(0, len(texts), TEXTS):
            some = list(texts[first : first + TEXTS])
            counts = [len(ids) for ids in self.tokenizer(some)["input_ids"]]
            if max(counts) > most:
                at = counts.index(max(counts))
                raise ValueError(f"{some[at]!r} has {counts[at]} tokens, and {self.files.name} reads {most}")
            tokens = self.tokenizer(some, return_tensors="pt", **padding)["input_ids"].to(self.device)
            pooled = self.model.text_model(input_ids=tokens).pooler_output
            found.append(self.model.text_projection(pooled) if self.is_clip else pooled)
        vectors = nn.functional.normalize(torch.cat(found), dim=-1)
        if not vectors.isfinite().all():
            raise ValueError(f"{self.files.name} gives words no finite numbers")
        return np.asarray(vectors.cpu())

    @torch.inference_mode()
    def patches(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w D"]:
        """Vectors of an image's patches, of any length, from one pass.

        CLIP as in MaskCLIP (Zhou et al., ECCV 2022, section 3.2): in the last layer's attention each patch has its own
        value, then come the rest of the layer, the last norm and the projection that CLIP applies to its class token.
        SigLIP has no class token but pools by attention; as MaskCLIP does to the ResNets of CLIP, which pool so too,
        each patch passes through the head alone, which of a single key takes the value. Positions are interpolated.
        """
        vision = self.model.vision_model
        patch, least = vision.config.patch_size, FINER * vision.config.image_size
        grid = tuple(max(1, round(side * least / min(image.shape[:2]) / patch)) for side in image.shape[:2])
        size = (grid[1] * patch, grid[0] * patch)
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).to(self.device, torch.float32).permute(2, 0, 1)
        given = ((pixels * self.rescale - self.mean) / self.std)[None]
        hidden = vision(pixel_values=given, interpolate_pos_encoding=True).last_hidden_state[0]
        if self.is_clip:
            vectors = self.model.visual_projection(vision.post_layernorm(hidden[1:]))
        else:
            vectors = vision.head(hidden[:, None])
        return np.asarray(vectors.reshape(*grid, -1).cpu())


class _ValuesOnly(nn.Module):
    """An attention in which every token sees itself alone."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.values, self.out = attention.v_proj, attention.out_proj

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """The state of each token, and no attention."""
        return self.out(self.values(hidden_states)), None


def _blank(files: ModelFiles) -> nn.Module:
    """A model as its configuration describes it, on the meta device."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    settings = read_json(files.folder / CONFIG)
    config, kind = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[settings["model_type"]]
    try:
        with torch.device("meta"):
            model: nn.Module = kind(config.from_dict(settings))
        if not hasattr(vision := model.vision_model, "head") and settings["model_type"] == "siglip":
            raise ValueError(f"{type(vision).__name__} has no head, without which images and words do not compare")
    except Exception as error:  # what transformers raises on settings that contradict each other is its to choose
        fault = f"describes no model: {type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{files.folder / CONFIG} {fault}") from error
    return model.eval()
