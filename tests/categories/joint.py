"""A small CLIP and a small SigLIP with random weights, and what they compute, written out number by number."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

MERGES = ("c a", "ca t</w>", "d o", "p h", "ph o", "pho t", "phot o</w>", "o f</w>", "t h", "th e</w>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.-"
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
PATCH, SIDE, HEADS, LAYERS, LONGEST = 4, 16, 2, 2, 64
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
WORDS = ("cat", "dog", "photo", "of", "the", "a")  # of the small SigLIP: all others are one unknown token


def vocabulary() -> dict[str, int]:
    """Ids of the small CLIP's tokens: characters, merged ones, and the two that every text has."""
    pieces = [*CHARACTERS, *(f"{each}</w>" for each in CHARACTERS), *(merge.replace(" ", "") for merge in MERGES)]
    return {piece: at for at, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def small_model(folder: Path, kind: str) -> Path:
    """Write a model as transformers saves it, with weights large enough for vectors to differ."""
    folder.mkdir(parents=True)
    ids = vocabulary()
    text = {**TOWER, "vocab_size": len(ids), "max_position_embeddings": LONGEST}
    ends = {"bos_token_id": len(ids) - 2, "eos_token_id": len(ids) - 1, "pad_token_id": len(ids) - 1}
    vision = {**TOWER, "patch_size": PATCH, "image_size": SIDE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "clip":
            model = CLIPModel(CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=12))
        else:
            text |= {"projection_size": 16}
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    norms = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(norms))
    if kind == "clip":
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    else:
        known = {word: at for at, word in enumerate(["<pad>", "<unk>", *WORDS])}
        words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return folder


def tokens(kind: str, text: str) -> list[int]:
    """Ids of a text's tokens, by merging the two neighbours that come first in MERGES until there are none."""
    if kind == "siglip":
        ids = [2 + WORDS.index(word) if word in WORDS else 1 for word in re.findall(r"\w+|[^\w\s]+", text)]
        return ids + [0] * (LONGEST - len(ids))
    found = ["<|startoftext|>"]
    for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for merge in MERGES:
            left, right = merge.split()
            at = 0
            while at < len(pieces) - 1:
                if pieces[at : at + 2] == [left, right]:
                    pieces[at : at + 2] = [left + right]
                at += 1
        found += pieces
    at_piece = vocabulary()
    return [at_piece[piece] for piece in [*found, "<|endoftext|>"]]


class Literal:
    """A model by its file alone, in float64."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.w = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0))

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        least = 1e-5 if self.kind == "clip" else 1e-6
        spread = np.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + least)
        scaled: np.ndarray = (x - x.mean(-1, keepdims=True)) / spread * self.w[f"{name}.weight"]
        return scaled + self.w[f"{name}.bias"]

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        hidden = self.linear(x, f"{name}.fc1")
        if self.kind == "clip":
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
        else:
            hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return self.linear(hidden, f"{name}.fc2")

    def attention(self, x: np.ndarray, name: str, causal: bool) -> np.ndarray:
        q, k, v = (self.linear(x, f"{name}.{each}_proj") for each in "qkv")
        out, width = np.zeros_like(x), x.shape[1] // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            for query in range(len(x)):
                seen = query + 1 if causal else len(x)
                raised = np.exp(k[:seen, part] @ q[query, part] / np.sqrt(width))
                out[query, part] = raised / raised.sum() @ v[:seen, part]
        return self.linear(out, f"{name}.out_proj")

    def layers(self, x: np.ndarray, tower: str, causal: bool = False, dense: bool = False) -> np.ndarray:
        for layer in range(LAYERS):
            name = f"{tower}.encoder.layers.{layer}"
            inner = self.norm(x, f"{name}.layer_norm1")
            if dense and layer == LAYERS - 1:
                own = self.linear(inner, f"{name}.self_attn.v_proj")
                x = x + self.linear(own, f"{name}.self_attn.out_proj")
            else:
                x = x + self.attention(inner, f"{name}.self_attn", causal)
            x = x + self.mlp(self.norm(x, f"{name}.layer_norm2"), f"{name}.mlp")
        return x

    def text(self, text: str) -> np.ndarray:
        """One text at length 1."""
        ids, clip = tokens(self.kind, text), self.kind == "clip"
        x = self.w["text_model.embeddings.token_embedding.weight"][ids]
        x = x + self.w["text_model.embeddings.position_embedding.weight"][: len(ids)]
        x = self.norm(self.layers(x, "text_model", causal=clip), "text_model.final_layer_norm")[-1]
        x = self.linear(x, "text_projection" if clip else "text_model.head")
        return x / np.linalg.norm(x)

    def patches(self, image: np.ndarray) -> np.ndarray:
        """[h, w, D] of an image, whose shorter side is twice what the model was trained at."""
        clip, v = self.kind == "clip", "vision_model"
        rows, columns = (round(side * 2 * SIDE / min(image.shape[:2]) / PATCH) for side in image.shape[:2])
        resized = Image.fromarray(image).resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
        pixels = (np.asarray(resized) / 255 - MEAN) / STD
        kernel = self.w[f"{v}.embeddings.patch_embedding.weight"]
        cells = pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1)
        x = cells @ kernel.reshape(len(kernel), -1).T + self.w.get(f"{v}.embeddings.patch_embedding.bias", 0)
        positions = self.w[f"{v}.embeddings.position_embedding.weight"]
        square = positions[1:] if clip else positions
        side = SIDE // PATCH
        grid = torch.from_numpy(square.T.reshape(1, -1, side, side).copy())
        wide = torch.nn.functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        x = x + wide[0].flatten(1).T.numpy()
        if clip:
            x = np.vstack([self.w[f"{v}.embeddings.class_embedding"] + positions[0], x])
            x = self.layers(self.norm(x, f"{v}.pre_layrnorm"), v, dense=True)[1:]
            x = self.linear(self.norm(x, f"{v}.post_layernorm"), "visual_projection")
        else:
            x = self.norm(self.layers(x, v), f"{v}.post_layernorm")
            weight, bias = (self.w[f"{v}.head.attention.in_proj_{each}"][-x.shape[1] :] for each in ("weight", "bias"))
            x = self.linear(x @ weight.T + bias, f"{v}.head.attention.out_proj")
            x = x + self.mlp(self.norm(x, f"{v}.head.layernorm"), f"{v}.head.mlp")
        return x.reshape(rows, columns, -1)
