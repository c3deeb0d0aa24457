"""Models of images and words in memory: texts and patches become vectors of one space, or an image boxes of words.

Letters: T texts, h w cells of the patches, D numbers of a vector, N boxes, W words.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from diffseg.models.device import Device
from diffseg.models.files import ModelFiles, tensors_of, weight_files
from diffseg.models.joint.files import CLIP, DETECTOR, KINDS
from diffseg.models.parts import first_line, quiet
from diffseg.models.recognise import named, read_json
from diffseg.models.specs import CONFIG
from diffseg.models.vit.recognise import PREPROCESSOR, normalisation
from diffseg.types import Float, UInt8

FINER = 2  # times the side that a model was trained at, for an image's shorter side: MaskCLIP gives 512 pixels for 224
LONG = 4  # times the shorter side that the longer one may have: a strip would fill the memory, and is squeezed
TEXTS = 256  # a pass
MOST_ASKED = 4  # times the weights that are there, which a model is given room for before they are compared
LOCAL: Any = {"local_files_only": True, "trust_remote_code": False}
PROMPT = "a photo of a {}"  # of OWL-ViT (Minderer et al., ECCV 2022); Grounding DINO reads bare words
Found = tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N _"]]


class WordModel:
    """A model that reads texts. It runs in float32, on a GPU where there is one. ready: makes images ready for it."""

    naming: ClassVar[str]  # of KINDS

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any, ready: Any = None, device: Device = None) -> None:
        self.files, self.tokenizer, self.ready = files, tokenizer, ready
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: Any = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self.family: str = self.model.config.model_type

    @classmethod
    def load(cls, files: ModelFiles, device: Device = None) -> Any:
        """Load a fetched model. Raises ValueError for weights that are missing, unknown, or of another shape."""
        quiet()
        import transformers

        with named(files):
            folder, settings, ready = files.folder, read_json(files.folder / CONFIG), None
            paths = [path for path in weight_files(folder, "") if [*tensors_of(path)]]  # it says what else they are
            tensors = chain.from_iterable(load_file(path).items() for path in paths)
            state = {key: value for key, value in tensors if value.is_floating_point()}  # positions are computed anew
            try:
                config = transformers.AutoConfig.for_model(**settings)
                if config.model_type == "siglip":  # only with it do images compare with words
                    config.vision_config.vision_use_head = True
                kind = getattr(transformers, KINDS[cls.naming][config.model_type])
                with torch.device("meta"):
                    asked = sum(each.numel() for each in kind(config).parameters())
                if asked > MOST_ASKED * (held := sum(each.numel() for each in state.values())):
                    raise ValueError(f"{CONFIG} asks for {asked:,} weights, and {held:,} are there")
                given = {"config": config, "state_dict": state, "dtype": torch.float32, "output_loading_info": True}
                model, misfits = kind.from_pretrained(None, **given, ignore_mismatched_sizes=True)
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
                if cls.naming == DETECTOR:
                    ready = transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL, backend="pil")
            except Exception as error:  # what transformers raises on files that do not fit each other is its to choose
                raise ValueError(f"{folder} describes no model and tokenizer: {first_line(error)}") from error
            if faults := [f"{what[:-5]} {sorted(keys)[0]}" for what, keys in misfits.items() if keys]:
                raise ValueError(f"{folder}: its weights are not those of {CONFIG}: {', '.join(faults)}")
            return cls(files, model, tokenizer, ready, device)

    def tokens(self, texts: Sequence[str], most: int, **padding: Any) -> list[list[int]]:
        """Tokens of texts. Raises ValueError for one with more, or other ones, than the model reads."""
        found: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        counts = [len(ids) for ids in found]
        if max(counts) > most:
            long = texts[counts.index(max(counts))]
            raise ValueError(f"{long!r} has {max(counts)} tokens, and {self.files.name} reads {most}")
        known = getattr(self.model.config, "text_config", self.model.config).vocab_size
        if (last := max(max(ids, default=0) for ids in found)) >= known:
            raise ValueError(f"the tokenizer of {self.files.name} gives token {last}, and its model knows {known}")
        return list(self.tokenizer(list(texts), **padding)["input_ids"])


class JointModel(WordModel):
    """A CLIP or SigLIP that is read densely: every patch gets a vector that compares with those of texts."""

    naming = CLIP

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any, ready: Any = None, device: Device = None) -> None:
        """Raises ValueError where the model's files do not say how images are normed."""
        super().__init__(files, model, tokenizer, ready, device)
        self.is_clip = self.family == "clip"
        if not {"image_mean", "image_std"} <= read_json(path := files.folder / PREPROCESSOR).keys():
            raise ValueError(f"{path} does not say image_mean and image_std, which differ between families")
        norms = normalisation(path)
        self.rescale = norms["rescale"]
        self.mean, self.std = (torch.tensor(norms[each], device=self.device).view(3, 1, 1) for each in ("mean", "std"))
        if self.is_clip:
            last = self.model.vision_model.encoder.layers[-1].self_attn  # in it each token sees itself alone
            last.forward = lambda hidden_states, **_: (last.out_proj(last.v_proj(hidden_states)), None)

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> Float[np.ndarray, "T D"]:
        """Vectors of texts, at length 1. Raises ValueError for one with more tokens than the model reads."""
        most = self.model.config.text_config.max_position_embeddings
        padding = {"padding": True} if self.is_clip else {"padding": "max_length", "max_length": most}  # as trained
        tokens = torch.tensor(self.tokens(texts, most, **padding), device=self.device)
        pooled = torch.cat([self.model.text_model(input_ids=some).pooler_output for some in tokens.split(TEXTS)])
        vectors = nn.functional.normalize(self.model.text_projection(pooled) if self.is_clip else pooled, dim=-1)
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
        sides = (min(LONG, side / min(image.shape[:2])) * least / patch for side in image.shape[:2])
        rows, columns = (max(1, round(side)) for side in sides)
        resized = np.array(Image.fromarray(image).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).to(self.device, torch.float32).permute(2, 0, 1)
        given = ((pixels * self.rescale - self.mean) / self.std)[None]
        hidden = vision(pixel_values=given, interpolate_pos_encoding=True).last_hidden_state[0]
        if self.is_clip:
            vectors = self.model.visual_projection(vision.post_layernorm(hidden[1:]))
        else:
            vectors = vision.head(hidden[:, None])
        return np.asarray(vectors.reshape(rows, columns, -1).cpu())


class Detector(WordModel):
    """An OWL-ViT, OWLv2 or Grounding DINO. Images are made ready as transformers does it for the model."""

    naming = DETECTOR

    @torch.inference_mode()
    def boxes(self, image: UInt8[np.ndarray, "H W 3"], words: tuple[str, ...]) -> list[Found]:
        """Boxes (left, top, right, bottom, as shares of the image) with scores in [0, 1], for some words after others.

        OWL-ViT and OWLv2 take one pass an image: words meet its boxes last. Grounding DINO mixes words into the image
        and takes a pass for as many as it reads at once (256 tokens, about a hundred words); a word's score is the mean
        over its tokens, as in that model's own evaluation. Raises ValueError for a word longer than the model reads.
        """
        from transformers.image_transforms import center_to_corners_format as corners

        pixels = self.ready(images=Image.fromarray(image), return_tensors="pt")["pixel_values"].to(self.device)
        sides = torch.tensor(image.shape[1::-1] * 2, device=self.device)
        frame = sides / sides.max() if self.family == "owlv2" else sides / sides  # it pads images to squares
        found = []
        if self.family == "grounding-dino":
            for ids, spans in self.read(words):
                seen = self.model(pixel_values=pixels, input_ids=ids)
                tokens = seen.logits[0].sigmoid()
                found.append((seen.pred_boxes[0], torch.stack([tokens[:, span].mean(-1) for span in spans], 1)))
        else:
            cells, _ = self.model.image_embedder(pixel_values=pixels)
            logits, _ = self.model.class_predictor(cells.flatten(1, 2), self.read(words)[None])
            found.append((self.model.box_predictor(cells.flatten(1, 2), cells)[0], logits[0].sigmoid()))
        return [(np.asarray((corners(at) / frame).cpu()), np.asarray(scores.cpu())) for at, scores in found]

    @lru_cache(maxsize=1)  # noqa: B019 - a process has one detector and one list of words
    @torch.inference_mode()
    def read(self, words: tuple[str, ...]) -> Any:
        """What a pass takes of words: vectors, or prompts as [1, tokens] with the places of their words."""
        if self.family != "grounding-dino":
            texts, most = [PROMPT.format(word) for word in words], self.model.config.text_config.max_position_embeddings
            tokens, both = self.tokens(texts, most, padding=True), getattr(self.model, self.family)
            parts = torch.tensor(tokens, device=self.device).split(TEXTS)
            return torch.cat([both.text_projection(both.text_model(part).pooler_output) for part in parts])
        most, dot = self.model.config.max_text_len, self.tokenizer.convert_tokens_to_ids(".")
        prompts: list[tuple[list[int], list[slice]]] = []
        for first, *own, last in self.tokens([word.lower() for word in words], most - 1):
            if not prompts or len(prompts[-1][0]) + len(own) + 1 > most:
                prompts.append(([first, last], []))
            ids, spans = prompts[-1]
            spans.append(slice(len(ids) - 1, len(ids) - 1 + len(own)))
            ids[-1:] = [*own, dot, last]
        return [(torch.tensor([ids], device=self.device), spans) for ids, spans in prompts]
