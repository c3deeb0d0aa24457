"""Fused attention, and the mean of its probabilities over heads.

All heads of one layer at 64 x 64 cells would take half a gigabyte per image. The fused kernels return the log-sum-exp
of every row of scores beside their output; with it the probabilities are computed tile by tile and added to one map.

Letters: B images, H heads, n cells, d channels of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg.models.exponentials import add_exponentials
from diffseg.models.fused_attention import fused_attention
from diffseg.types import Float

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one forward pass.

    levels: float32 [B, n, n], each the mean over the heads and layers of one resolution, finest first.
    grid: height and width in cells of the finest level.
    features: the vector of every cell [B, n, channels] where they were asked for, of the cells of `features_grid`.
    words: of each cell's attention to words the share of each [B, W, h, w], where it was given words.
    """

    levels: tuple[Tensor, ...]
    grid: tuple[int, int]
    features: Tensor | None = None
    features_grid: tuple[int, int] | None = None
    words: Tensor | None = None


def cells_of(pixels: Float[Tensor, "B 3 H W"], unit: int) -> tuple[int, int]:
    """Height and width of a model's input in units. unit: pixels. Raises ValueError where pixels are left over."""
    height, width = pixels.shape[2:]
    if height % unit or width % unit or not height * width:
        raise ValueError(f"the sides of the model's input must be multiples of {unit}, got {height} x {width}")
    return height // unit, width // unit


def attend(
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H n d"],
    value: Float[Tensor, "B H n d"],
    mean: Float[Tensor, "B n n"],
    weight: float,
) -> Float[Tensor, "B n c"]:
    """Self-attention; adds `weight` times the head mean of the probabilities to `mean`."""
    if torch.compiler.is_compiling():
        whole: Tensor = attend_opaque(query, key, value, mean, weight)
        return whole
    output, log_sum = fused_attention(query, key, value)
    add_head_mean(mean, query, key, log_sum, weight)
    return output.transpose(1, 2).flatten(2)


@torch.library.custom_op("diffseg::attend", mutates_args=("mean",))
def attend_opaque(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    """`attend` as one operator, which torch.compile neither traces into nor breaks the graph at."""
    return attend(query, key, value, mean, weight).contiguous()


@attend_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    images, heads, cells, channels = query.shape
    return query.new_empty((images, cells, heads * channels))


def add_head_mean(
    mean: Float[Tensor, "B n n"],
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H n d"],
    log_sum: Float[Tensor, "B H n"],
    weight: float = 1.0,
) -> None:
    """Add `weight` times softmax(query key^T / sqrt(d)).mean(heads) to `mean`, in place.

    Scores are made in float32: those of SD 2 pass the float16 maximum.
    """
    # in base 2: exp2 takes a third of the time exp does
    shift = log_sum * LOG2_E - math.log2(weight / query.shape[1])
    add_exponentials(mean, query, key, shift, LOG2_E * query.shape[-1] ** -0.5)
