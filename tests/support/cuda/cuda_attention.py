"""Attention as CUDA's fused kernels give it, over numbers that lie on the processor: which kernel takes what, and the
shape of the log-sum-exps beside each output. Arguments and results are those of the operators of torch.

Letters: B images, H heads, n cells, d channels of a head.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

Kernel = Literal["flash", "efficient", "cudnn"]
WIDEST = {"flash": 256, "cudnn": 128}  # heads that each takes, in half precision and multiples of 8
PADDING = 32  # rows: the efficient kernel's log-sum-exps come in multiples


def choice(query: Tensor, *_: Any, kernel: Kernel, **__: Any) -> int:
    """The kernel that a card takes which prefers `kernel`, as a value of SDPBackend."""
    for name in dict.fromkeys((kernel, "flash")) if kernel != "efficient" else ():
        if _takes(name, query):
            return int(getattr(SDPBackend, f"{name.upper()}_ATTENTION").value)
    return int(SDPBackend.EFFICIENT_ATTENTION.value)


def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Any, ...]:
    """Log-sum-exps [B, H, n]."""
    output, log_sum = _attend("flash", query, key, value)
    seed = torch.zeros(2, dtype=torch.int64)
    return output, log_sum, None, None, query.shape[2], key.shape[2], seed, seed, None


def efficient(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Any, ...]:
    """Log-sum-exps [B, H, n and more]; what is beyond n holds whatever was there."""
    output, log_sum = _attend("efficient", query, key, value)
    cells = log_sum.shape[2]
    padded = log_sum.new_full((*log_sum.shape[:2], -(-cells // PADDING) * PADDING), torch.inf)
    padded[..., :cells] = log_sum
    seed = torch.zeros((), dtype=torch.int64)
    return output, padded, seed, seed


def cudnn(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Any, ...]:
    """Log-sum-exps [B, H, n, 1]."""
    output, log_sum = _attend("cudnn", query, key, value)
    seed = torch.zeros((), dtype=torch.int64)
    return output, log_sum[..., None], None, None, query.shape[2], key.shape[2], seed, seed, None


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "_fused_sdp_choice": choice,
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_efficient_attention": efficient,
    "_scaled_dot_product_cudnn_attention": cudnn,
}


def _takes(kernel: str, query: Tensor) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    return kernel == "efficient" or (half and query.shape[-1] % 8 == 0 and query.shape[-1] <= WIDEST[kernel])


def _attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and float32 log-sum-exps of the rows of scores."""
    if not _takes(kernel, query):
        raise RuntimeError(f"{kernel} attention takes no {query.dtype} with heads of {query.shape[-1]} channels")
    scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5
    return scaled_dot_product_attention(query, key, value), scores.logsumexp(-1)
