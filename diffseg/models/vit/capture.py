"""Self-attention of a vision transformer, averaged over heads and its last layers while it runs.

Letters: B images, H heads, t tokens (class, registers, then patches), n patches, d channels of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffseg.models.attention import attend
from diffseg.models.parts import quiet
from diffseg.types import Float

NAME = "diffseg"  # of our attention in transformers' registry
STORE = "diffseg_store"  # the attribute of a recorded layer
LEFT_OUT = nn.Identity()


class AttentionStore:
    """The running mean of one forward pass over the last layers."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.mean: Tensor | None = None

    def add(self, query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "B t c"]:
        """Attend as one layer does; its head mean goes into the mean."""
        if self.mean is None:
            images, _, tokens, _ = query.shape
            self.mean = query.new_zeros((images, tokens, tokens), dtype=torch.float32)
        return attend(query, key, value, self.mean, 1 / self.layers)

    def of_patches(self, patches: int) -> Float[Tensor, "B n n"]:
        """The mean between patches, rows summing to one."""
        if self.mean is None:
            raise RuntimeError("no self-attention was recorded: run the model inside the block first")
        first = self.mean.shape[1] - patches
        kept = self.mean[:, first:, first:]
        shares: Tensor = kept / kept.sum(-1, keepdim=True)
        return shares


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Self-attention as transformers' registry has it: tensors [B, H, t, d] in, [B, t, H, d] out.

    Layers that are not recorded take the kernel which torch chooses, as transformers' own "sdpa" does.
    """
    store = getattr(module, STORE, None)
    if isinstance(store, AttentionStore):
        return store.add(query, key, value).unflatten(-1, (query.shape[1], -1)), None
    return scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def attend_through_us(model: nn.Module) -> None:
    """Make every layer of a model attend by `attention`."""
    quiet()
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    vit: Any = model
    vit.set_attn_implementation(NAME)


@contextmanager
def capture_attention(model: nn.Module, layers: int, *, features: bool = True) -> Iterator[AttentionStore]:
    """Record the last layers while the block runs, then forget it.

    features: False: the perceptron after the last attention, which only features need, is left out.
    """
    store = AttentionStore(layers)
    recorded = attention_layers(model)[-layers:]
    last: Any = [module for module in model.modules() if hasattr(module, "mlp")][-1]
    perceptron = last.mlp
    try:
        for layer in recorded:
            setattr(layer, STORE, store)
        if not features:
            last.mlp = LEFT_OUT
        yield store
    finally:
        last.mlp = perceptron
        for layer in recorded:
            delattr(layer, STORE)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Every self-attention of a model in order of execution: what calls transformers' attention functions."""
    return [module for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "scaling")]
