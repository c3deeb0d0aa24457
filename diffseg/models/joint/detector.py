"""A zero-shot detector in memory: from an image and words come boxes, each with a score for every word.

Letters: N boxes, W words.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffseg.models.joint.files import DETECTOR
from diffseg.models.joint.model import TEXTS, WordModel
from diffseg.types import Float, UInt8

PROMPT = "a photo of a {}"  # of OWL-ViT (Minderer et al., ECCV 2022); Grounding DINO reads bare words
Found = tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N _"]]


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
        ends = torch.tensor([-0.5, 0.5], device=self.device)[:, None]
        corners = [((each[:, None, :2] + ends * each[:, None, 2:]).flatten(1) / frame).cpu() for each, _ in found]
        return [(np.asarray(own), np.asarray(scores.cpu())) for own, (_, scores) in zip(corners, found, strict=True)]

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
