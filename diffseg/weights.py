"""Where a model's files come from: the package, a folder, the hub, or any storage that fsspec reaches.

A name goes in, a local folder with its digest comes out. No torch: a driver asks here what it is about to run.
Only safetensors are ever taken, since a pickle is a program.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffseg.backends import BACKENDS, OVERRIDES

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
WEIGHTED = PARTS[:4]
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # the others: "model"
POSSIBLE = (
    f"possible are {', '.join(BACKENDS)}, a hub id (owner/name), a folder or an fsspec URL with a Stable Diffusion "
    "checkpoint as diffusers saves it (unet/, vae/, text_encoder/, tokenizer/, weights as safetensors)"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint on this machine.

    revision: the hub's commit, None for what has none.
    sha256: over the files that decide labels, whatever the folder is called.
    """

    name: str
    folder: Path
    revision: str | None
    sha256: str


def fetch(model: str, cache: Path | None = None) -> ModelFiles:
    """Bring a model to this machine, once, and say exactly which it is.

    cache: where remote files are kept, `~/.cache/diffseg` by default; several processes may fetch at once.
    Raises ValueError where there is no usable checkpoint under that name, OSError where it cannot be reached now.
    """
    folder, revision = _locate(
        model, cache or Path(os.environ.get("DIFFSEG_CACHE", Path.home() / ".cache" / "diffseg"))
    )
    listing = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = needed(model, listing)
    return ModelFiles(model, folder, revision, _digest(folder, names))


def needed(model: str, listing: Iterable[str]) -> list[str]:
    """The files of a checkpoint that decide labels, in order.

    Raises ValueError where they are not all there.
    """
    names = set(listing)
    chosen = {name for name in names if name == OVERRIDES or _is_settings(PurePosixPath(name))}
    for part in WEIGHTED:
        if part in ("unet", "vae", "text_encoder") or any(name.startswith(f"{part}/") for name in names):
            chosen.update(_weights(model, part, names))
    if "unet/config.json" not in names or "vae/config.json" not in names:
        raise ValueError(
            f"{model!r} is no Stable Diffusion checkpoint: no unet/config.json or vae/config.json; {POSSIBLE}"
        )
    return sorted(chosen)


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors of one part of a fetched checkpoint."""
    listing = {path.relative_to(folder).as_posix() for path in (folder / part).iterdir()}
    return [folder / name for name in sorted(_weights(str(folder), part, listing)) if name.endswith(".safetensors")]


def _is_settings(path: PurePosixPath) -> bool:
    return (
        len(path.parts) == 2
        and path.parts[0] in PARTS
        and path.suffix in (".json", ".txt")
        and "index" not in path.name
    )


def _weights(model: str, part: str, names: set[str]) -> set[str]:
    """Full precision before half, one file before several."""
    stem = STEMS.get(part, "model")
    for variant in ("", ".fp16"):
        if (whole := f"{part}/{stem}{variant}.safetensors") in names:
            return {whole}
        index = f"{part}/{stem}.safetensors.index{variant}.json"
        shards = re.compile(rf"{part}/{stem}{variant}-\d+-of-\d+{variant}\.safetensors")
        if index in names and (found := {name for name in names if shards.fullmatch(name)}):
            return found
    if any(name.startswith(f"{part}/") and name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names):
        raise ValueError(f"{model!r} holds {part} only as a pickle, which is a program and is never run; {POSSIBLE}")
    raise ValueError(f"{model!r} is no Stable Diffusion checkpoint: no {part}/{stem}.safetensors; {POSSIBLE}")


def _digest(folder: Path, names: list[str]) -> str:
    def of(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free: gigabytes are a matter of seconds
        digests = list(pool.map(of, names))
    whole = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        whole.update(name.encode() + b"\0" + digest)
    return whole.hexdigest()


def _locate(model: str, cache: Path) -> tuple[Path, str | None]:
    if not model:
        raise ValueError(f"no model was named; {POSSIBLE}")
    if model == "tiny":
        return Path(__file__).parent / "tiny", None
    if model in BACKENDS:
        return _from_hub(BACKENDS[model].repo or model, None)
    if "://" in model and not model.startswith("file://"):
        return _from_storage(model, cache), None
    path = Path(model.removeprefix("file://")).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.exists():
        raise ValueError(f"{model!r} is a file; {POSSIBLE}")
    if match := HUB_ID.fullmatch(model):
        return _from_hub(match["repo"], match["revision"])
    raise ValueError(f"there is no model {model!r}; {POSSIBLE}")


def _from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    raise NotImplementedError


def _from_storage(url: str, cache: Path) -> Path:
    raise NotImplementedError
