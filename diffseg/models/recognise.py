"""A model folder recognised by its own configuration files, whatever it is called. No torch: a driver does this too.

What a configuration says is applied or refused, never passed over: a wrong input gives labels that look like labels.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.config import SegmentConfig
from diffseg.models.specs import CONFIG, OVERRIDES, BackendSpec, Spec

# Of numbers in a configuration, by the end of their names
MOST = {
    "hidden_size": 65_536,
    "layers_per_block": 1_000,
    "_layers": 1_000,
    "_heads": 1_024,
    "_size": 1_000_000,
    "_dim": 65_536,
    "_channels": 65_536,
    "_tokens": 65_536,
    "_embeddings": 1_000_000,
    "_ratio": 65_536,
}
LONGEST = 64 << 20  # bytes of a configuration; those of tokenizers have tens of millions
if TYPE_CHECKING:
    from diffseg.models.files import ModelFiles


def recognise(files: "ModelFiles") -> Spec:
    """Recognise what a model folder holds by its own configuration files.

    Raises ValueError that says what the folder is, where it is no UNet of the SD 1, 2 or XL family and no DINOv2 or
    DINOv3 vision transformer.
    """
    from diffseg.models.files import listing_of
    from diffseg.models.unet.recognise import recognise_unet
    from diffseg.models.vit.recognise import recognise_vit

    with named(files):
        return recognise_vit(files) if is_vit(listing_of(files.folder)) else recognise_unet(files)


def is_vit(listing: Iterable[str]) -> bool:
    """Whether files have the layout of transformers, one model, and not that of diffusers, parts in folders."""
    names = set(listing)
    return CONFIG in names and not any(name.startswith("unet/") for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError where there is no such file or it is no JSON object."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LONGEST else b""
    except OSError as error:
        raise ValueError(f"{path} {wrong_file(path) or _unreadable(error)}") from error
    if size > LONGEST:
        raise ValueError(f"{path} has {size:,} bytes, which no configuration has")
    return json_object(data, str(path))


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The object that a configuration holds. name: of the file, for errors. Raises ValueError where it holds none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} {wrong_bytes(data) or _unreadable(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} should hold a JSON object, got {type(content).__name__}")
    for key, value in numbers(content):  # before anything of such a size is made
        most = next((most for end, most in MOST.items() if key.endswith(end)), None)
        if most and not abs(value) <= most:
            raise ValueError(f"{name}: {key} is beyond what a model here can have ({most:,})")
    return content


def numbers(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a document, however deep, by the key that it stands under."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers(value, name if isinstance(name, str) else key)
    elif isinstance(content, int | float):
        yield key, content


def _unreadable(error: Exception) -> str:
    return f"cannot be read as a model's configuration: {error}"


def wrong_file(path: Path) -> str | None:
    """What a file is in place of the expected one, where its first bytes tell; None otherwise."""
    if not path.is_file():
        return "is not there"
    with path.open("rb") as file:
        return wrong_bytes(file.read(512))


def wrong_bytes(data: bytes) -> str | None:
    """What bytes are in place of the expected ones, where they are of a known wrong kind."""
    if not data:
        return "is empty"
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer in the place of the file: `git lfs pull` brings it"
    if re.match(rb"\s*<(!doctype|html|\?xml)", data, re.IGNORECASE):
        return "is a web page in the place of the file: fetch it again"
    return None


@contextmanager
def named(files: "ModelFiles") -> Iterator[None]:
    """Name the URL or hub id that was asked for in errors, not the copy on this machine."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(files.folder), files.name)) from error


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def override(spec: Any, folder: Path) -> Any:
    """A spec with what the model's folder says of itself in `diffseg.json`. Raises ValueError for nonsense there."""
    path = folder / OVERRIDES
    if not path.is_file():
        return spec
    own = read_json(path)
    possible = ("thresholds", "cut", "timestep" if isinstance(spec, BackendSpec) else "layers", "image_size", "dtype")
    if unknown := sorted(set(own) - set(possible)):
        raise ValueError(f"{path} has no {unknown[0]!r}; it may have {', '.join(possible)}")
    try:
        if "thresholds" in own:
            own["thresholds"] = tuple(own["thresholds"])
        SegmentConfig(**{name: value for name, value in own.items() if name != "layers"}).resolve(spec)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(spec, **own)
