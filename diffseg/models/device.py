"""The device that a model runs on: its choice, the images that fit it, kernels compiled for it."""

import logging
import os
from contextlib import suppress

import torch

from diffseg.config import ResolvedConfig
from diffseg.labels.edges import PIXELS
from diffseg.models.fetch import cache_folder

SHARE = 0.7  # of the free memory that a batch may fill: the rest is for fragmentation and what kernels take themselves
MOST = 32  # images a batch: smaller ones fill a GPU already

# What lives at once while labels are made, in float32 numbers: measured by `tests/models/test_memory.py`.
ANCHORED = 13  # copies of the maps of all anchors, where merging is greedy; with refinement the finest map itself too
COMPARED = 5  # copies of the comparison of all vectors, in mode `quality`
CROPPED = 6  # copies of the finest map where crops are clustered, whose cells are not pooled
TILES = 1 << 20  # of the tiles in which cells are given to leaves
PAINTED, LEAVES = 5, 4  # a pixel of a label map, and of leaves where there is a tree
EDGES = 500  # a pixel, of as many as are refined at a time

COMPILERS = {"triton": "TRITON_CACHE_DIR", "inductor": "TORCHINDUCTOR_CACHE_DIR"}  # and where each is told its cache

logger = logging.getLogger(__name__)

Device = torch.device | str | None


def placed(config: ResolvedConfig, device: Device) -> tuple[torch.device, torch.dtype]:
    """Where a model goes, a GPU by default where there is one, and in which precision."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype: torch.dtype = getattr(torch, config.dtype)
    if where.type == "cpu" and dtype != torch.float32:
        logger.warning("%s is slow on most processors: name dtype float32 there", config.dtype)
    if where.type == "cuda" or config.compile:
        _share_compiled()
    return where, dtype


def image_bytes(config: ResolvedConfig, cells: int, vectors: int, maps: int, passing: int) -> int:
    """Memory for an image while its labels are made and the next one's pass runs.

    cells: of the finest map; vectors: cells of the features. maps: bytes of all levels; passing: bytes at the peak of a
    pass, with its maps.
    """
    return passing + maps + labelling_bytes(config, cells, vectors, maps, passing)


def labelling_bytes(config: ResolvedConfig, cells: int, vectors: int, maps: int, passing: int) -> int:
    """Memory for an image's labels beside its maps; crops have passes of their own."""
    anchored = ANCHORED * config.anchors_per_side**2 * cells
    numbers = cells**2 + TILES if config.tree else max(anchored, config.refine * (cells**2 + anchored // 3))
    if config.mode == "quality":
        numbers = COMPARED * vectors**2
    side = config.output_size if isinstance(config.output_size, int) else 2 * config.image_size
    crops = max(passing, maps + 4 * CROPPED * cells**2) if config.crop_layers else 0
    return max(4 * numbers, (PAINTED + LEAVES * config.tree) * 3 * side**2, crops)


def images_that_fit(device: torch.device, config: ResolvedConfig, image: int) -> int:
    """Images of `image` bytes in a batch that fits in the free memory of the device; 1 on a processor.

    Larger batches are not faster on a processor, and use its caches worse.
    """
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    edges = 4 * EDGES * PIXELS["cuda"] if config.edges else 0
    return max(1, min(MOST, int((SHARE * free - edges) / image)))


def _share_compiled() -> None:
    """Share compiled kernels between all processes of this machine, unless the user keeps them elsewhere."""
    for compiler, variable in COMPILERS.items():
        folder = cache_folder() / compiler
        with suppress(OSError):  # a read-only cache: each has a folder of its own
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                os.environ.setdefault(variable, str(folder))
