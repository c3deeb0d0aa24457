"""Small zero-shot detectors with random weights, saved as transformers saves them."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    SwinConfig,
)

from tests.categories.joint import MEAN, MERGES, STD, vocabulary

DETECTORS = ("owlvit", "owlv2", "grounding-dino")
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE, LONGEST = 24, 32  # pixels that OWL-ViT sees; tokens that each reads
PIECES = ("cat", "dog", "sky", "tree", "kit", "##ten", "hippo", "##pot", "##am", "##us", "a", "of", "the", "photo")


def small_detector(folder: Path, kind: str) -> Path:
    """Write a model with weights large enough for words to differ."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = _grounding_dino() if kind == "grounding-dino" else _owl(kind)
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2 if "box" in name else 0.3)
    model.save_pretrained(folder)
    said = {"do_normalize": True, "image_mean": MEAN, "image_std": STD}
    if kind == "grounding-dino":
        said |= {
            "image_processor_type": "GroundingDinoImageProcessor",
            "size": {"shortest_edge": 80, "longest_edge": 120},
        }
        words = [f"[unused{number}]" for number in range(1030)] + list(PIECES)
        for at, word in ((0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (1012, "."), (1029, "?")):
            words[at] = word
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    else:
        name = {"owlvit": "OwlViTImageProcessor", "owlv2": "Owlv2ImageProcessor"}[kind]
        said |= {"image_processor_type": name, "size": {"height": SIDE, "width": SIDE}}
        (folder / "vocab.json").write_text(json.dumps(vocabulary()))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def _owl(kind):
    ids = vocabulary()
    ends = {"bos_token_id": len(ids) - 2, "eos_token_id": len(ids) - 1, "pad_token_id": 0}
    text = {**TOWER, **ends, "vocab_size": len(ids), "max_position_embeddings": LONGEST}
    vision = {**TOWER, "patch_size": 4, "image_size": SIDE}
    config, model = (
        (OwlViTConfig, OwlViTForObjectDetection) if kind == "owlvit" else (Owlv2Config, Owlv2ForObjectDetection)
    )
    return model(config(text_config=text, vision_config=vision, projection_dim=16))


def _grounding_dino():
    swin = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[2] * 4,
        window_size=2,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=1030 + len(PIECES),
        max_position_embeddings=64,
    )
    few = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    few |= {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=text, d_model=64, num_queries=20, max_text_len=LONGEST, **few
    )
    return GroundingDinoForObjectDetection(config)
