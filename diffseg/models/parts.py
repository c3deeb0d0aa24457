"""Weights of a model, read from safetensors into a part that was built without memory on the "meta" device.

Each tensor of a part must be in its files, in its shape, and each tensor of the files must belong to it: nothing is
left to random numbers. Importing this needs no torch.
"""

import os
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.models.files import tensors_of, weight_files
from diffseg.models.recognise import numbers
from diffseg.models.specs import CONFIG

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMED = 3  # tensors named in an error
FLOATS = re.compile(r"(BF|F)\d+.*")  # types of weights, as safetensors names them
ASKED = ("layers", "layers_per_block", "hidden_size", "intermediate_size", "_channels", "cross_attention_dim")
LAYERS, WIDTH = 64, 8_192  # that are built on the "meta" device at no cost, whatever the weights have
HALVES = ("gate_proj", "up_proj")  # transformers 5 has in two tensors what files have in one

Rename = Callable[[str], str]  # from the name of a tensor in any version of its library to the current one


def quiet() -> None:
    """Silence both libraries; to be called before the first import of either."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of a missing torchvision
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it warns of every change of precision
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of a few files


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), "")


def fill(part: "nn.Module", folder: Path, name: str, rename: Rename, unused: str) -> "nn.Module":
    """Give a part its weights, in the precision of its files.

    Raises ValueError: see `locations`; and for weights that are no numbers.
    """
    from safetensors import safe_open

    places = locations(part, folder, name, rename, unused)
    state: dict[str, Tensor] = {}
    for path in sorted({path for path, *_ in places.values()}):
        with safe_open(path, framework="pt") as file:
            for wanted, (where, key, half) in places.items():
                if where == path:
                    whole = file.get_tensor(key)
                    state[wanted] = whole if half is None else whole.chunk(2)[half].clone()
    part.load_state_dict(state, assign=True)
    tensors = chain(part.named_parameters(), part.named_buffers())
    if blank := [key for key, tensor in tensors if tensor.is_meta and not key.endswith("position_ids")]:
        raise ValueError(f"{folder / name} is of a kind whose {blank[0]} is in no file and not known here")
    for key, weight in part.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{folder / name} has no usable attention: its {key} holds NaN or infinite numbers")
    return part.requires_grad_(False)


def fitting(settings: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """The settings of a part, once its weights are found to be as many as they ask for, before anything is built.

    Raises ValueError for more layers than there are tensors, or wider ones than the largest of these. Of small
    differences `locations` says more.
    """
    shapes = [shape for path in weight_files(folder, name) for _, shape, _ in tensors_of(path)]
    widest = max((max(shape, default=0) for shape in shapes), default=0)
    layers, width = max(LAYERS, len(shapes)), max(WIDTH, widest)
    for key, value in numbers(settings):
        if key.endswith(ASKED) and value > (layers if "layers" in key else width):
            has = f"{len(shapes)} tensors, none wider than {widest}"
            raise ValueError(f"{folder / name / CONFIG} asks for a {key} of {value:g}, and its weights have {has}")
    if long := next((key for key, value in settings.items() if isinstance(value, list) and len(value) > layers), None):
        raise ValueError(f"{folder / name / CONFIG} says more of {long} than its weights have tensors")
    return settings


def locations(
    part: "nn.Module", folder: Path, name: str, rename: Rename, unused: str
) -> dict[str, tuple[Path, str, int | None]]:
    """Location of each tensor of a part: its file, its name in it, and its half of what lies there, or None.

    name: the folder of the part, "" where the model lies in one folder. unused: pattern of current names of tensors
    that are not loaded.
    Raises ValueError that names the file and some tensors that are missing, unknown, or of another shape or type.
    """
    wanted = {rename(key): (key, tuple(tensor.shape)) for key, tensor in part.state_dict().items()}
    found: dict[str, tuple[Path, str, int | None]] = {}
    misfits: list[str] = []
    files = weight_files(folder, name)
    for path in files:
        for key, shape, dtype in tensors_of(path):
            for current, half in _pieces(rename(key), wanted):
                own, expected = wanted.get(current, ("", ()))
                if half is not None and shape:
                    expected = (2 * expected[0], *expected[1:])
                if own and own not in found:
                    found[own] = path, key, half
                    if shape != expected or not FLOATS.fullmatch(dtype):
                        misfits.append(f"holds {key} as {dtype} {list(shape)}, not {list(expected)}")
                elif own or not re.fullmatch(unused, current):
                    misfits.append(f"has no place for {key}")
    missing = sorted(key for key, _ in wanted.values() if key not in found)
    if missing or misfits:
        where = files[0] if len(files) == 1 else folder / name
        lacking = [f"lacks {len(missing)} of its {len(wanted)} tensors, {missing[0]} first"] if missing else []
        more = [f"({len(misfits) - NAMED} more)"] if len(misfits) > NAMED else []
        others = ", ".join(missing[1:NAMED])
        faults = "; ".join([*lacking, *([f"then {others}"] if others else []), *sorted(misfits)[:NAMED], *more])
        raise ValueError(f"{where} does not fit {folder / name}/config.json: {faults}")
    return found


def _pieces(key: str, wanted: Any) -> list[tuple[str, int | None]]:
    """The tensors of a part that one tensor of a file holds, each with its half of it."""
    halves = [key.replace("weights_in", half) for half in HALVES]
    return [(key, None)] if key in wanted or halves[0] not in wanted else list(zip(halves, (0, 1), strict=True))
