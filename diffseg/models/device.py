"""The device that a model runs on: its choice, the images that fit it, kernels compiled for it."""

import logging
import os
from contextlib import suppress

import torch

from diffseg.config import ResolvedConfig
from diffseg.models.fetch import cache_folder

SHARE = 0.6  # of the free memory that a batch may fill: the rest is for fragmentation and what the estimate omits
MOST = 32  # images a batch: smaller ones fill a GPU already

CROPS_COPIES = 6  # of the finest map, that live at once besides where crops are looked at: their cells are not pooled

logger = logging.getLogger(__name__)

Device = torch.device | str | None


def placed(config: ResolvedConfig, device: Device) -> tuple[torch.device, torch.dtype]:
    """Where a model goes, a GPU by default where there is one, and in which precision."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype: torch.dtype = getattr(torch, config.dtype)
    if where.type == "cpu" and dtype != torch.float32:
        logger.warning("%s is slow on most processors: name dtype float32 there", config.dtype)
    if where.type == "cuda":
        _share_compiled()
    return where, dtype


def images_that_fit(device: torch.device, image_bytes: int) -> int:
    """Images of a batch that fit in the free memory of the device; 1 on a processor.

    Larger batches are not faster on a processor, and use its caches worse.
    """
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MOST, int(SHARE * free / image_bytes)))


def _share_compiled() -> None:
    """Share compiled kernels between all processes of this machine, unless the user keeps them elsewhere."""
    folder = cache_folder() / "triton"
    with suppress(OSError):  # a read-only cache: Triton has a folder of its own
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TRITON_CACHE_DIR", str(folder))
