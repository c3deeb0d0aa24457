"""A zero-shot detector in memory: from an image and words come boxes, each with a score for every word.

Letters: N boxes, W words, of a pass.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffseg.models.device import Device
from diffseg.models.files import ModelFiles
from diffseg.models.joint.files import DETECTOR
from diffseg.models.joint.model import TEXTS, WordModel
from diffseg.models.parts import first_line
from diffseg.types import Float, UInt8

PROMPT = (
    "a photo of a {}"  # of OWL-ViT (Minderer et al., ECCV 2022); Grounding DINO reads bare words, with dots between
)
Found = tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N _"]]


class Detector(WordModel):
    """An OWL-ViT, OWLv2 or Grounding DINO. Images are made ready as transformers does it for the model."""

    naming = DETECTOR

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any, device: Device = None) -> None:
        """Raises ValueError where the model's files do not say how images are made ready."""
        super().__init__(files, model, tokenizer, device)
        from transformers import AutoImageProcessor

        rules = {"local_files_only": True, "trust_remote_code": False, "backend": "pil"}
        try:
            self.ready = AutoImageProcessor.from_pretrained(files.folder, **rules)
        except Exception as error:  # each release raises other kinds on files that are none of an image processor
            raise ValueError(f"{files.name} does not say how images are made ready: {first_line(error)}") from error
        self.family = self.model.config.model_type
        self.read: Any = lru_cache(maxsize=1)(self._prompts if self.family == "grounding-dino" else self._vectors)

    @torch.inference_mode()
    def boxes(self, image: UInt8[np.ndarray, "H W 3"], words: tuple[str, ...]) -> list[Found]:
        """Boxes (left, top, right, bottom, as shares of the image) with scores in [0, 1], for some words after others.

        OWL-ViT and OWLv2 take one pass an image: words meet its boxes last. Grounding DINO mixes words into the image
        and takes a pass for as many as it reads at once (256 tokens, about a hundred words); a word's score is the mean
        over its tokens, as in that model's own evaluation. Raises ValueError for a word longer than the model reads.
        """
        height, width = image.shape[:2]
        pixels = self.ready(images=Image.fromarray(image), return_tensors="pt")["pixel_values"].to(self.device)
        sides = torch.tensor([width, height] * 2, device=self.device) / max(width, height)
        frame = sides if self.family == "owlv2" else torch.ones_like(sides)  # it pads images to squares
        if self.family == "grounding-dino":
            found = []
            for ids, spans in self.read(words):
                seen = self.model(pixel_values=pixels, input_ids=ids)
                tokens = seen.logits[0].sigmoid()
                scores = torch.stack([tokens[:, span].mean(-1) for span in spans], 1)
                found.append(_found(seen.pred_boxes[0], scores, frame))
            return found
        cells, _ = self.model.image_embedder(pixel_values=pixels)
        flat = cells.flatten(1, 2)
        logits, _ = self.model.class_predictor(flat, self.read(words)[None])
        return [_found(self.model.box_predictor(flat, cells)[0], logits[0].sigmoid(), frame)]

    @torch.inference_mode()
    def _vectors(self, words: tuple[str, ...]) -> Float[Tensor, "W D"]:
        texts, most = [PROMPT.format(word) for word in words], self.model.config.text_config.max_position_embeddings
        ids = torch.tensor(self.tokens(texts, most, padding=True), device=self.device)
        both = getattr(self.model, self.family)
        return torch.cat([both.text_projection(both.text_model(some).pooler_output) for some in ids.split(TEXTS)])

    def _prompts(self, words: tuple[str, ...]) -> list[tuple[Tensor, list[slice]]]:
        """Prompts of words with dots between, each with the places of its words."""
        most, dot = self.model.config.max_text_len, self.tokenizer.convert_tokens_to_ids(".")
        prompts: list[tuple[list[int], list[slice]]] = []
        for first, *own, last in self.tokens([word.lower() for word in words], most - 1):
            if not prompts or len(prompts[-1][0]) + len(own) + 2 > most:
                prompts.append(([first, last], []))
            ids, spans = prompts[-1]
            spans.append(slice(len(ids) - 1, len(ids) - 1 + len(own)))
            ids[-1:] = [*own, dot, last]
        return [(torch.tensor([ids], device=self.device), spans) for ids, spans in prompts]


def _found(boxes: Tensor, scores: Tensor, frame: Tensor) -> Found:
    centres, halves = boxes.split(2, dim=-1)
    corners = torch.cat([centres - halves / 2, centres + halves / 2], -1) / frame
    return np.asarray(corners.cpu()), np.asarray(scores.cpu())
