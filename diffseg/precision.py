"""Matrix products on tensor cores, for as long as a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MATMUL: Any = torch.backends.cuda.matmul
NAME, FAST = ("fp32_precision", "tf32") if hasattr(MATMUL, "fp32_precision") else ("allow_tf32", True)


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Let float32 products on a GPU round their inputs to ten bits of mantissa (TF32), then restore what was set.

    Between densities (see aggregate.py) this moves a distance by some 1e-4 nats and is several times faster.
    """
    before = getattr(MATMUL, NAME)
    try:
        if allowed:
            setattr(MATMUL, NAME, FAST)
        yield
    finally:
        setattr(MATMUL, NAME, before)
