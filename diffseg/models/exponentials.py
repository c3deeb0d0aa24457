"""Sums of exponentials of scores, added to a map: by a Triton kernel on a CUDA device, by torch everywhere else.

torch is also the fallback where the kernel cannot be compiled or started: equal sums, in more time.

Letters: B images, H heads, n cells, d channels of a head.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

TILE = 256  # query rows a step on a processor: fewer, larger steps share better between threads

logger = logging.getLogger(__name__)

_unsupported: set[tuple[torch.device, torch.dtype, int]] = set()  # the int: channels of a head
_logged: set[str] = set()  # reasons, each logged once


def add_exponentials(mean: Tensor, query: Tensor, key: Tensor, shift: Tensor, scale: float) -> None:
    """Add the sum over heads of 2^(scale * query key^T - shift) to `mean` [B, n, n], in place.

    query, key: [B, H, n, d]; shift: float32 [B, H, n].
    Raises OutOfMemoryError where memory runs out, and what torch raises where the device is lost.
    """
    case = query.device, query.dtype, query.shape[-1]
    if query.device.type != "cuda" or case in _unsupported:
        add_exponentials_torch(mean, query, key, shift, scale)
        return
    try:
        _kernel()(mean, query, key, shift, scale)
    except Exception as error:
        if "out of memory" in str(error):
            raise torch.cuda.OutOfMemoryError(str(error)) from error
        add_exponentials_torch(mean, query, key, shift, scale)  # raises too where the device is lost
        _fall_back(case, error)


@cache
def _kernel() -> Callable[[Tensor, Tensor, Tensor, Tensor, float], None]:
    from diffseg.models.attention_triton import add_exponentials

    return add_exponentials


def _fall_back(case: tuple[torch.device, torch.dtype, int], error: Exception) -> None:
    """Use torch for this case from now on, and log the reason once."""
    _unsupported.add(case)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if reason not in _logged:
        _logged.add(reason)
        device, dtype, channels = case
        logger.warning(
            "attention goes a slower way on %s (heads of %d channels in %s; the labels are the same): "
            "its Triton kernel cannot be compiled or started: %s",
            device,
            channels,
            str(dtype).removeprefix("torch."),
            reason,
        )


@torch.no_grad()
def add_exponentials_torch(mean: Tensor, query: Tensor, key: Tensor, shift: Tensor, scale: float) -> None:
    """Add the sum over heads of 2^(scale * query key^T - shift) to `mean`.

    The shift is one more channel of the product, which saves a pass over the scores.
    """
    images, heads, cells, _ = query.shape
    ones = torch.ones((heads, 1, cells), device=mean.device)
    scores = mean.new_empty((TILE, cells))
    for image in range(images):
        left = torch.cat([query[image].float() * scale, -shift[image, ..., None]], dim=-1)
        right = torch.cat([key[image].float().transpose(-1, -2), ones], dim=-2)
        for start in range(0, cells, TILE):
            total = mean[image, start : start + TILE]
            tile = scores[: len(total)]
            for head in range(heads):
                torch.mm(left[head, start : start + TILE], right[head], out=tile)
                total.add_(tile.exp2_())
