"""Copies between the host and a device: each in one piece, and what is constant once. On a processor there are none."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Made = TypeVar("Made")


def upload(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Copies on the device, which the host does not wait for. The widest numbers come first."""
    if device.type == "cpu":
        return [torch.from_numpy(each if each.flags.writeable else each.copy()) for each in arrays]  # torch would warn
    packed = torch.from_numpy(np.concatenate([each.reshape(-1).view(np.uint8) for each in arrays])).pin_memory()
    parts = packed.to(device, non_blocking=True).split([each.nbytes for each in arrays])
    kinds = [torch.from_numpy(np.empty(0, each.dtype)).dtype for each in arrays]
    return [part.view(kind).view(each.shape) for part, kind, each in zip(parts, kinds, arrays, strict=True)]


def download(*tensors: Tensor) -> list[np.ndarray]:
    """Copies on the host."""
    if tensors[0].device.type == "cpu":
        return [each.numpy() for each in tensors]
    packed = torch.cat([each.reshape(-1).view(torch.uint8) for each in tensors]).cpu().numpy()
    ends = np.cumsum([each.nbytes for each in tensors])
    kinds = [torch.empty(0, dtype=each.dtype).numpy().dtype for each in tensors]
    return [
        part.view(kind).reshape(each.shape)
        for part, kind, each in zip(np.split(packed, ends[:-1]), kinds, tensors, strict=True)
    ]


def kept(function: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what a function makes on the device that is its last argument: by streams, for none waits for another."""
    of_stream = lru_cache(maxsize=256)(lambda stream, *given: function(*given))

    @wraps(function)
    def ask(*given: Any) -> Made:
        device = given[-1]
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        return of_stream(stream, *given)

    return ask


@kept
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device."""
    return upload(device, torch.tensor(values, dtype=dtype).numpy())[0]
