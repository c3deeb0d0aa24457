"""torch's fused attention kernels, called so that they return the log-sum-exp of every row of scores too.

The only file that uses private names of torch; `tests/test_private_names.py` says which versions have them.
Letters: B images, H heads, n cells, d channels of a head.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from diffseg.types import Float

aten = torch.ops.aten
FLASH_ON_CPU = aten._scaled_dot_product_flash_attention_for_cpu


def fused_attention(
    query: Float[Tensor, "B H n d"], key: Float[Tensor, "B H n d"], value: Float[Tensor, "B H n d"]
) -> tuple[Float[Tensor, "B H n d"], Float[Tensor, "B H n"]]:
    """The output of scaled_dot_product_attention, and the log-sum-exp of each row of scores.

    Calls the kernel which torch itself would choose for these tensors, so that the output is equal to the bit; cuDNN's
    alone differs, since it makes another plan where it returns log-sum-exps too.
    """
    cells = query.shape[2]
    match torch._fused_sdp_choice(query, key, value), query.device.type:
        case SDPBackend.FLASH_ATTENTION.value, "cpu":
            output, log_sum = FLASH_ON_CPU(query, key, value)
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
    """The log-sum-exp of each row of scores, one head at a time: for devices whose fused kernel does not return it."""
    scale = query.shape[-1] ** -0.5
    heads = [
        torch.logsumexp((q.float() * scale) @ k.float().T, dim=-1)
        for q, k in zip(query.flatten(0, 1), key.flatten(0, 1), strict=True)
    ]
    sums: Tensor = torch.stack(heads).unflatten(0, query.shape[:2])
    return sums
