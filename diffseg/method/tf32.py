"""TF32: matrix products on tensor cores while a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MATMUL: Any = torch.backends.cuda.matmul


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Let float32 products on a GPU round their inputs to ten bits of mantissa (TF32), then restore the setting.

    Between densities (see aggregate.py) this moves a distance by some 1e-4 nats and is several times faster.
    """
    newer = getattr(MATMUL, "fp32_precision", None)  # from torch 2.9 on: "none" where it was not set
    if not allowed or (newer == "tf32" if newer else MATMUL.allow_tf32):
        yield
        return
    try:
        MATMUL.allow_tf32 = True  # sets the newer one too; setting that alone would make reads of this one raise
        yield
    finally:
        MATMUL.allow_tf32 = False
        if newer:
            MATMUL.fp32_precision = newer
