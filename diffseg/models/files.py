"""The files of a checkpoint: which of a listing it needs, and what tensors they hold. No torch.

Only safetensors are accepted, since a pickle is a program.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from diffseg.models.recognise import is_vit, json_object, wrong_bytes, wrong_file
from diffseg.models.specs import CONFIG, MODELS, OVERRIDES
from diffseg.models.unet.recognise import SCHEDULER
from diffseg.models.vit.recognise import POSSIBLE as KINDS
from diffseg.models.vit.recognise import PREPROCESSOR, unsupported

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
WEIGHTED = PARTS[:4]
VARIANTS = ("", ".fp16", ".bf16")  # full precision before half
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # the others: "model"
POSSIBLE = (
    f"possible are {', '.join(MODELS)}, a hub id (owner/name), a folder or an fsspec URL with a Stable Diffusion "
    "checkpoint as diffusers saves it (unet/, vae/, text_encoder/, tokenizer/, weights as safetensors), or with a "
    "DINOv2 or DINOv3 vision transformer as transformers saves it (config.json, model.safetensors)"
)
Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint on this machine.

    revision: the hub's commit; None for other models.
    sha256: of the files that decide labels, independent of the folder's name.
    licence: as the table of models names it; `unknown` for what is not in it.
    """

    name: str
    folder: Path
    revision: str | None
    sha256: str
    licence: str = "unknown"


def needed(model: str, listing: Iterable[str], read: Read | None = None) -> list[str]:
    """The files of a checkpoint that decide labels, in order.

    read: the bytes of a listed file, for the index of weights in parts; without it parts are told by their names.
    Raises ValueError where they are not all there.
    """
    names = set(listing)
    if is_vit(names):
        if read and (fault := unsupported(json_object(read(CONFIG), f"{model}: {CONFIG}"))):
            raise ValueError(f"{model} {fault}; {KINDS}")
        return sorted({CONFIG, *weights(model, "", names, read), *({PREPROCESSOR, OVERRIDES} & names)})
    chosen = {name for name in names if name == OVERRIDES or _is_settings(PurePosixPath(name))}
    second = any(name.startswith("text_encoder_2/") for name in names)
    for part in WEIGHTED[: 3 + second]:
        chosen.update(weights(model, part, names, read))
    for part in WEIGHTED[: 3 + second]:
        if f"{part}/config.json" not in names:
            raise ValueError(f"{model} is no Stable Diffusion checkpoint: no {part}/config.json; {POSSIBLE}")
    for part in PARTS[4 : 5 + second]:
        if not names & {f"{part}/vocab.json", f"{part}/tokenizer.json"}:
            raise ValueError(f"{model} is no Stable Diffusion checkpoint: no {part}/vocab.json; {POSSIBLE}")
    return sorted(chosen)


def beside(listing: Iterable[str]) -> list[str]:
    """Files of a copy that no label depends on: the indices of weights in parts, the scheduler."""
    names = set(listing)
    parts = ("",) if is_vit(names) else WEIGHTED
    indices = {_inside(part, name) for part in parts for variant in VARIANTS for name in _indices(part, variant)}
    return sorted((indices | {SCHEDULER}) & names)


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors of one part of a fetched checkpoint; part "": of a model that lies in one folder."""
    listing = {path.relative_to(folder).as_posix() for path in (folder / part).iterdir()}
    return [folder / name for name in sorted(weights(str(folder), part, listing, reader_of(folder)))]


def listing_of(folder: Path) -> list[str]:
    """Files in a model's folder and in the folders of its parts."""
    found = chain(folder.glob("*"), folder.glob("*/*"))
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def reader_of(folder: Path) -> Read:
    """A function that reads listed files of a folder."""
    return lambda name: (folder / name).read_bytes()


def tensors_of(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of each tensor of a safetensors file, from its header.

    Raises ValueError that says what the file is instead.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_slice(key)
                yield key, tuple(tensor.get_shape()), tensor.get_dtype()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} {wrong_file(path) or f'is damaged or not whole: {error}'}") from error


def _inside(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _is_settings(path: PurePosixPath) -> bool:
    return (
        len(path.parts) == 2
        and path.parts[0] in PARTS
        and path.suffix in (".json", ".txt")
        and "index" not in path.name
    )


def weights(model: str, part: str, names: set[str], read: Read | None) -> set[str]:
    """The weights of one part: full precision before half, one file before several. Raises ValueError without them."""
    stem, fault = STEMS.get(part, "model"), None
    for variant in VARIANTS:
        if (whole := _inside(part, f"{stem}{variant}.safetensors")) in names:
            return {whole}
        indices = [_inside(part, index) for index in _indices(part, variant)]
        if read and (index := next((index for index in indices if index in names), None)):
            named = _indexed(model, index, read(index))
            if named <= names:
                return named
            fault = fault or f"{index} names {sorted(named - names)[0]}, which is not there"
            continue
        numbers = rf"{stem}(?:{variant}-\d+-of-(\d+)|-\d+-of-(\d+){variant})\.safetensors"
        pattern = _inside(part, numbers)
        shards = [match for name in names if (match := re.fullmatch(pattern, name))]
        if shards and len(shards) == int(shards[0][1] or shards[0][2]):
            return {match.string for match in shards}
    if fault:
        raise ValueError(f"{model} is not whole: {fault}")
    if any(name.startswith(_inside(part, "")) and name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names):
        held = part or "its weights"
        raise ValueError(f"{model} holds {held} only as a pickle, which is a program and is never run; {POSSIBLE}")
    kind = "Stable Diffusion checkpoint" if part else "whole vision transformer"
    raise ValueError(f"{model} is no {kind}: no {_inside(part, stem)}.safetensors; {POSSIBLE}")


def _indices(part: str, variant: str) -> tuple[str, str]:
    """Possible names of an index: as both libraries name it now, and as diffusers did."""
    stem = STEMS.get(part, "model")
    return f"{stem}.safetensors.index{variant}.json", f"{stem}.safetensors{variant}.index.json"


def _indexed(model: str, index: str, data: bytes) -> set[str]:
    """The files that an index names. Raises ValueError for no index, and for names outside its folder."""
    try:
        named: Any = set(json.loads(data)["weight_map"].values())
        outside = [name for name in named if not re.fullmatch(r"[^/\\]+\.safetensors", name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = wrong_bytes(data) or "is no index of weights in parts: it has no weight_map of file names"
        raise ValueError(f"{model}: {index} {fault}") from error
    if outside or not named:
        raise ValueError(f"{model}: {index} names {sorted(outside) or 'nothing'}, not safetensors of its own folder")
    return {(PurePosixPath(index).parent / name).as_posix() for name in named}
