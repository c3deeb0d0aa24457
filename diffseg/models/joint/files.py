"""The files of a model of images and words, recognised by its `config.json`. No torch."""

from collections.abc import Collection, Iterable
from functools import partial

from diffseg.models.fetch import fetch
from diffseg.models.files import POSSIBLE as SEGMENTERS
from diffseg.models.files import ModelFiles, Read, weights
from diffseg.models.recognise import json_object
from diffseg.models.specs import CONFIG
from diffseg.models.vit.recognise import PREPROCESSOR

CLIP, DETECTOR = "clip", "detector"
OWLS = {"owlvit": "OwlViT", "owlv2": "Owlv2", "grounding-dino": "GroundingDino"}
KINDS = {  # that `config.json` names, with their classes in transformers, by what is made of them
    CLIP: {"clip": "CLIPModel", "siglip": "SiglipModel"},  # vectors of patches and words
    DETECTOR: {kind: f"{name}ForObjectDetection" for kind, name in OWLS.items()},  # boxes of words
}
# A tokenizer has all files of one of them
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spiece.model"})
POSSIBLE = (
    f"possible are models of the kinds {', '.join(KINDS[CLIP])}, and of {', '.join(KINDS[DETECTOR])} as detectors, as "
    f"transformers saves them ({CONFIG}, {PREPROCESSOR}, a tokenizer, model.safetensors), as a folder, a hub id "
    "(owner/name) or an fsspec URL"
)
SETTINGS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}


def fetch_joint(model: str, naming: str) -> ModelFiles:
    """Copy a model of images and words to this machine, once; see `diffseg.models.fetch.fetch`.

    naming: one of KINDS. Raises ValueError where there is no usable one under that name, OSError where it cannot be
    reached now.
    """
    try:
        return fetch(model, wanted=partial(needed_joint, KINDS[naming]))
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace(SEGMENTERS, POSSIBLE)) from error


def needed_joint(kinds: Collection[str], model: str, listing: Iterable[str], read: Read | None = None) -> list[str]:
    """As `needed`, the files that decide what words an image is near to. Raises ValueError where one is not there."""
    names = set(listing)
    if lost := sorted({CONFIG, PREPROCESSOR} - names):
        raise ValueError(f"{model} has no {lost[0]}; {POSSIBLE}")
    kind = str(json_object(read(CONFIG), f"{model}: {CONFIG}").get("model_type")) if read else None
    if kind and kind not in kinds:
        raise ValueError(f"{model} is a model of the kind {kind}, which knows no words; {POSSIBLE}")
    found = [files for files in VOCABULARIES if files <= names]
    if not found:
        raise ValueError(f"{model} has no tokenizer; {POSSIBLE}")
    return sorted({CONFIG, PREPROCESSOR, *set().union(*found), *(SETTINGS & names), *weights(model, "", names, read)})
