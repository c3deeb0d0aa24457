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
KINDS = {  # classes of transformers by the kinds that `config.json` names, by what is made of them
    CLIP: {"clip": "CLIPModel", "siglip": "SiglipModel"},  # vectors of patches and words
    DETECTOR: {  # boxes of words
        "owlvit": "OwlViTForObjectDetection",
        "owlv2": "Owlv2ForObjectDetection",
        "grounding-dino": "GroundingDinoForObjectDetection",
    },
}
# A tokenizer has all files of one of them
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spiece.model"})
SETTINGS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}


def fetch_joint(model: str, naming: str) -> ModelFiles:
    """Copy a model of images and words to this machine, once; see `diffseg.models.fetch.fetch`.

    naming: one of KINDS. Raises ValueError where there is no usable one under that name, OSError where it cannot be
    reached now.
    """
    try:
        return fetch(model, wanted=partial(needed_joint, KINDS[naming]))
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace(SEGMENTERS, _possible(KINDS[naming]))) from error


def needed_joint(kinds: Collection[str], model: str, listing: Iterable[str], read: Read | None = None) -> list[str]:
    """As `needed`, the files that decide what words an image is near to. Raises ValueError where one is not there."""
    names, possible = set(listing), _possible(kinds)
    if lost := sorted({CONFIG, PREPROCESSOR} - names):
        raise ValueError(f"{model} has no {lost[0]}; {possible}")
    kind = str(json_object(read(CONFIG), f"{model}: {CONFIG}").get("model_type")) if read else None
    if kind and kind not in kinds:
        raise ValueError(f"{model} is a model of the kind {kind}, which knows no words; {possible}")
    found = [files for files in VOCABULARIES if files <= names]
    if not found:
        raise ValueError(f"{model} has no tokenizer; {possible}")
    return sorted({CONFIG, PREPROCESSOR, *set().union(*found), *(SETTINGS & names), *weights(model, "", names, read)})


def _possible(kinds: Collection[str]) -> str:
    return (
        f"possible are models of the kinds {', '.join(kinds)} as transformers saves them ({CONFIG}, {PREPROCESSOR}, a "
        "tokenizer, model.safetensors), as a folder, a hub id (owner/name) or an fsspec URL"
    )
