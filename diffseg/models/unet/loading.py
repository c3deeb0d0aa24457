"""Loading through diffusers and transformers: parts of a model are built, or read from a recognised folder.

How weights come into a part: `diffseg.models.parts`. Importing this needs no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.config import texts_of
from diffseg.models.files import WEIGHTED, ModelFiles
from diffseg.models.parts import fill, first_line, fitting, locations, quiet
from diffseg.models.recognise import read_json, wrong_file
from diffseg.models.specs import BackendSpec
from diffseg.models.unet.recognise import text_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

UNUSED = {  # tensors in the files of a part that are not loaded: parts that are dropped, and index buffers
    "unet": r"$^",
    "vae": r"(decoder|post_quant_conv)\..*",
    "text_encoder": r"vision_model\..*|(visual|text)_projection\.weight|logit_scale|.*\bposition_ids",
    "text_encoder_2": r"vision_model\..*|visual_projection\.weight|logit_scale|.*\bposition_ids",
}


def new_part(settings: Mapping[str, Any], device: str = "cpu") -> "nn.Module":
    """Build a UNet or VAE from its configuration, with the random weights diffusers starts from.

    On the "meta" device it takes no memory and has no weights yet.
    """
    quiet()
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = {kind.__name__: kind for kind in (UNet2DConditionModel, AutoencoderKL, AutoencoderTiny)}
    with torch.device(device):
        part: nn.Module = kinds[settings["_class_name"]].from_config(dict(settings))
    return part.eval()


def new_text_encoder(settings: Mapping[str, Any], projected: bool, device: str = "cpu") -> "nn.Module":
    """Build a CLIP text encoder as `new_part` does; projected: with the pooled projection SDXL adds."""
    quiet()
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    with torch.device(device):
        encoder: nn.Module = kind(CLIPTextConfig(**settings))
    return encoder.eval()


def check_unet(files: ModelFiles, spec: BackendSpec, lines: Sequence[str] = ()) -> None:
    """Compare every part of a recognised model with the headers of its files. Raises ValueError as loading would."""
    for name in WEIGHTED[: 3 + spec.added_conditions]:
        locations(_blank(files.folder, name), files.folder, name, modern_name, UNUSED[name])
    for name in WEIGHTED[2 : 3 + spec.added_conditions]:
        prompts_of(files.folder, name, lines)


def read_prompt(
    folder: Path, two_encoders: bool, lines: Sequence[str] = ()
) -> tuple["Tensor", "Tensor | None", list[list[range]]]:
    """Embed the empty prompt as the family's own pipeline does, and those that list the words of lines:
    [1 + K, 77, context], the first one pooled, [1, channels], or None, and the places of words in the others.
    """
    import torch

    with torch.inference_mode():
        first, (_, *places) = _encoded(folder, "text_encoder", lines)
        if not two_encoders:
            return torch.cat([each.last_hidden_state for each in first]), None, places
        second, _ = _encoded(folder, "text_encoder_2", lines)
        both = [torch.cat([each.hidden_states[-2] for each in part]) for part in (first, second)]
        return torch.cat(both, dim=-1), second[0].text_embeds, places


def _encoded(folder: Path, name: str, lines: Sequence[str]) -> tuple[list[Any], list[list[range]]]:
    import torch

    encoder: Any = read_part(folder, name).float()
    outputs, prompts = [], prompts_of(folder, name, lines)
    for ids, _ in prompts:  # one by one: the empty one is the same bits with others and without
        positions = torch.arange(len(ids))[None]  # the encoder's own list of them is in no file
        outputs.append(encoder(torch.tensor([ids]), position_ids=positions, output_hidden_states=True))
    return outputs, [places for _, places in prompts]


def prompts_of(folder: Path, name: str, lines: Sequence[str] = ()) -> list[tuple[list[int], list[range]]]:
    """Tokens of the empty prompt, then of prompts that list words (`texts_of`), each with the places of its own.

    Raises ValueError where the tokenizer does not fit the text encoder, and for a word that no prompt can hold.
    """
    quiet()
    from transformers import CLIPTokenizer

    files, text = folder / name.replace("text_encoder", "tokenizer"), text_settings(folder, name)
    most, known = text.get("max_position_embeddings", 77), text.get("vocab_size", 49_408)
    for path in files.glob("*.json"):
        read_json(path)
    if (files / "merges.txt").exists() and (fault := wrong_file(files / "merges.txt")):
        raise ValueError(f"{files}/merges.txt {fault}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(files, local_files_only=True)
    except Exception as error:  # each release raises other kinds on files that are none of a tokenizer
        raise ValueError(f"{files} is no tokenizer of CLIP: {first_line(error)}") from error
    if not 0 < tokenizer.model_max_length <= most:
        raise ValueError(f"{files}/tokenizer_config.json gives no model_max_length of at most {most} tokens")
    empty: list[int] = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length).input_ids
    words = [word for synonyms in texts_of(lines) for word in synonyms] if lines else []
    comma, *texts = (tokenizer(each, add_special_tokens=False).input_ids for each in (",", *words))
    lists: list[tuple[list[int], list[range]]] = [([], [])]
    for word, ids in zip(words, texts, strict=True):
        if not 0 < len(ids) <= (room := len(empty) - 2):
            raise ValueError(f"{word!r} has {len(ids)} tokens, and a prompt of {folder} holds 1 to {room}")
        if len(lists) == 1 or len(lists[-1][0]) + len(comma) + len(ids) > room:
            lists.append(([], []))
        body, places = lists[-1]
        body += [*(comma if body else ()), *ids]
        places.append(range(len(body) + 1 - len(ids), len(body) + 1))
    prompts = [([empty[0], *body, *empty[1 : len(empty) - len(body)]], places) for body, places in lists]
    if max(max(ids) for ids, _ in prompts) >= known:
        raise ValueError(f"{files} has words beyond the {known} that {folder / name} knows")
    return prompts


def _blank(folder: Path, name: str) -> "nn.Module":
    """A part of a checkpoint as its configuration describes it, on the meta device."""
    config, is_text = folder / name / "config.json", name.startswith("text_encoder")
    settings = fitting(text_settings(folder, name) if is_text else read_json(config), folder, name)
    try:
        if is_text:
            return new_text_encoder(settings, name == "text_encoder_2", "meta")
        part = new_part(settings, "meta")
    except Exception as error:  # what the libraries raise on settings that contradict each other is theirs to choose
        raise ValueError(f"{config} describes no model: {type(error).__name__}: {first_line(error)}") from error
    if name == "vae":
        vae: Any = part  # a part may be None, but nn.Module's types do not say so
        vae.decoder = vae.post_quant_conv = None
    return part


def read_part(folder: Path, name: str) -> "nn.Module":
    """Load a part of a fetched checkpoint, a VAE without its decoder. Raises ValueError: see `parts.locations`."""
    return fill(_blank(folder, name), folder, name, modern_name, UNUSED[name])


def modern_name(key: str) -> str:
    """The current name of a tensor: the attention of VAEs was renamed in 2023, text encoders had a prefix."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return key.removeprefix("text_model.")
