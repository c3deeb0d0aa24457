"""The files of a model of images and words, recognised by its `config.json`. No torch."""

from collections.abc import Iterable

from diffseg.models.fetch import fetch
from diffseg.models.files import POSSIBLE as SEGMENTERS
from diffseg.models.files import ModelFiles, Read, weights
from diffseg.models.recognise import json_object
from diffseg.models.specs import CONFIG
from diffseg.models.vit.recognise import PREPROCESSOR

KINDS = ("clip", "siglip")
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})  # one of them is needed
SETTINGS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
POSSIBLE = (
    f"possible are models of the kinds {', '.join(KINDS)} as transformers saves them ({CONFIG}, {PREPROCESSOR}, a "
    "tokenizer, model.safetensors), as a folder, a hub id (owner/name) or an fsspec URL"
)


def fetch_joint(model: str) -> ModelFiles:
    """Copy a model of images and words to this machine, once; see `diffseg.models.fetch.fetch`.

    Raises ValueError where there is no usable one under that name, OSError where it cannot be reached now.
    """
    try:
        return fetch(model, wanted=needed_joint)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace(SEGMENTERS, POSSIBLE)) from error


def needed_joint(model: str, listing: Iterable[str], read: Read | None = None) -> list[str]:
    """As `needed`, the files that decide what words an image is near to. Raises ValueError where one is not there."""
    names = set(listing)
    if lost := sorted({CONFIG, PREPROCESSOR} - names):
        raise ValueError(f"{model} has no {lost[0]}; {POSSIBLE}")
    kind = json_object(read(CONFIG), f"{model}: {CONFIG}").get("model_type") if read else KINDS[0]
    if kind not in KINDS:
        raise ValueError(f"{model} is a model of the kind {kind}, which knows no words; {POSSIBLE}")
    found = [files for files in VOCABULARIES if files <= names]
    if not found:
        raise ValueError(f"{model} has no tokenizer; {POSSIBLE}")
    return sorted({CONFIG, PREPROCESSOR, *set().union(*found), *(SETTINGS & names), *weights(model, "", names, read)})
