"""Fused attention, and the mean of its probabilities over heads.

All heads of one layer at 64 x 64 cells would take half a gigabyte per image. The fused kernels give the log-sum-exp of
every row of scores beside their output; with it the probabilities are rebuilt tile by tile and added to one map.

Letters: B images, H heads, n cells, d channels of a head.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from diffseg.models.exponentials import add_exponentials
from diffseg.types import Float

LOG2_E = math.log2(math.e)

aten = torch.ops.aten


def attend(
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H n d"],
    value: Float[Tensor, "B H n d"],
    mean: Float[Tensor, "B n n"],
    weight: float,
) -> Float[Tensor, "B n c"]:
    """Self-attention; on the way `mean` gains `weight` times the head mean of the probabilities."""
    output, log_sum = fused_attention(query, key, value)
    add_head_mean(mean, query, key, log_sum, weight)
    return output.transpose(1, 2).flatten(2)


@torch.library.custom_op("diffseg::attend", mutates_args=("mean",))
def attend_opaque(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    """`attend` as one step that torch.compile neither looks into nor breaks at."""
    return attend(query, key, value, mean, weight).contiguous()


@attend_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    images, heads, cells, channels = query.shape
    return query.new_empty((images, cells, heads * channels))


def fused_attention(
    query: Float[Tensor, "B H n d"], key: Float[Tensor, "B H n d"], value: Float[Tensor, "B H n d"]
) -> tuple[Float[Tensor, "B H n d"], Float[Tensor, "B H n"]]:
    """What scaled_dot_product_attention gives, and the log-sum-exp of each row of scores.

    The same kernel is called that it would choose itself for these tensors: its output is the same to the bit, but for
    cuDNN's, which makes another plan where it gives log-sum-exps too.
    """
    cells = query.shape[2]
    match torch._fused_sdp_choice(query, key, value), query.device.type:
        case SDPBackend.FLASH_ATTENTION.value, "cpu":
            output, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        case SDPBackend.FLASH_ATTENTION.value, "cuda":
            output, log_sum = aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        case SDPBackend.EFFICIENT_ATTENTION.value, "cuda":
            output, log_sum = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
        case SDPBackend.CUDNN_ATTENTION.value, "cuda":
            output, log_sum = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
        case _:
            return scaled_dot_product_attention(query, key, value), log_sum_exp(query, key)
    return output, log_sum.reshape(*query.shape[:2], -1)[..., :cells]  # one kernel pads the rows to 32


def log_sum_exp(query: Float[Tensor, "B H n d"], key: Float[Tensor, "B H n d"]) -> Float[Tensor, "B H n"]:
    """Of each row of scores, one head at a time: for devices whose fused kernel keeps it to itself."""
    scale = query.shape[-1] ** -0.5
    heads = [
        torch.logsumexp((q.float() * scale) @ k.float().T, dim=-1)
        for q, k in zip(query.flatten(0, 1), key.flatten(0, 1), strict=True)
    ]
    sums: Tensor = torch.stack(heads).unflatten(0, query.shape[:2])
    return sums


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
