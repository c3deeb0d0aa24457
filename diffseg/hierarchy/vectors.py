"""Vectors of leaves: the features of the same pass, averaged over pixels and projected to few numbers.

Letters: B images, R runs and S leaves of all images (see labels/rle.py), c channels, n cells.
"""

import numpy as np
import torch
from torch import Tensor

from diffseg.labels.rle import RunLengths, Segments
from diffseg.labels.score import PARTS, sum_along_runs
from diffseg.transfer import kept, upload
from diffseg.types import Float, Int

SIZE = 64  # numbers of a vector
LARGEST = 127  # of int8


def vectors_of(
    features: Float[Tensor, "B n c"], grid: tuple[int, int], rle: RunLengths, leaves: Segments
) -> tuple[Int[Tensor, "S 64"], Float[Tensor, " S"]]:
    """Values and scales of the vectors of all leaves: the mean feature over their pixels, projected.

    grid: height and width of the features in cells, which fills each label map whole.
    """
    projection = _projection(features.shape[2], features.device)
    projected = (features.float().nan_to_num() @ projection).unflatten(1, grid)[:, None]
    of_run = sum_along_runs(projected, torch.zeros_like(rle.label), rle, [(0, 0, *size) for size in rle.sizes])
    index = leaves.of_run[:, None].expand(-1, SIZE)
    total = leaves.area.new_zeros(len(leaves.area), SIZE).scatter_add_(0, index, (of_run * PARTS).round().long())
    means = total.double() / PARTS / leaves.area[:, None]
    scales = (means.abs().amax(-1) / LARGEST).half()
    values = (means / scales.double()[:, None]).nan_to_num().round().clamp(-LARGEST, LARGEST)
    return values.char(), scales


@kept
def _projection(channels: int, device: torch.device) -> Float[Tensor, "c 64"]:
    """Orthonormal columns, or rows where there are fewer channels: angles between vectors change little."""
    drawn = np.random.default_rng(0).standard_normal((max(channels, SIZE), min(channels, SIZE)))
    basis, triangle = np.linalg.qr(drawn)
    basis = basis * np.sign(np.diagonal(triangle))  # either sign is a solution, and libraries differ
    return upload(device, (basis if channels >= SIZE else basis.T).astype(np.float32))[0]
