"""Self-attention of a UNet, averaged over heads and layers while it runs.

All heads of one layer at 64 x 64 cells would take half a gigabyte per image. The fused kernel gives the log-sum-exp of
every row beside its output; with it the probabilities are rebuilt tile by tile and added to one map per level.

Letters: B images, H heads, n cells of a level, d channels of a head.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.types import Float

TILE = 64  # query rows a step: 1 MB of scores a head at 64 x 64 cells, which stays in a core's cache

aten = torch.ops.aten


@dataclass(frozen=True)
class AttentionMaps:
    """What one forward pass gives.

    levels: float32 [B, n, n], each the mean over the heads and layers of one resolution, finest first.
    grid: height and width in cells of the finest level.
    """

    levels: tuple[Tensor, ...]
    grid: tuple[int, int]


class AttentionStore:
    """The running means of one forward pass, one a level."""

    def __init__(self, layers: dict[int, int]) -> None:
        self.layers = layers  # of each depth, the halvings of the latent
        self.means: dict[int, Tensor] = {}

    def mean(self, depth: int, query: Float[Tensor, "B H n d"]) -> Float[Tensor, "B n n"]:
        """The level's map so far, zeros before its first layer."""
        if depth not in self.means:
            images, _, cells, _ = query.shape
            self.means[depth] = query.new_zeros((images, cells, cells), dtype=torch.float32)
        return self.means[depth]

    def maps(self, latent: tuple[int, int]) -> AttentionMaps:
        """Hand the levels out; latent: height and width of what the UNet was given."""
        if not self.means:
            raise RuntimeError("no self-attention was recorded: run the UNet inside the block first")
        depths = sorted(self.means)
        levels = tuple(self.means[depth] for depth in depths)
        return AttentionMaps(levels, (latent[0] >> depths[0], latent[1] >> depths[0]))


class Recorder:
    """An attention processor with the arithmetic of the stock one, which also adds to its level."""

    def __init__(self, store: AttentionStore, depth: int) -> None:
        self.store = store
        self.depth = depth

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Self-attention over [B, n, channels]; the output is the stock processor's to the bit."""
        layer: Any = attn
        query, key, value = (
            project(hidden_states).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project in (layer.to_q, layer.to_k, layer.to_v)
        )
        weight = 1 / self.store.layers[self.depth]
        mean = self.store.mean(self.depth, query)
        step = attend_compiled if torch.compiler.is_compiling() else attend
        mixed: Tensor = layer.to_out[0](step(query, key, value, mean, weight))
        return mixed / layer.rescale_output_factor


@contextmanager
def capture_attention(unet: nn.Module) -> Iterator[AttentionStore]:
    """Record attention while the block runs, then leave the model as it was."""
    model: Any = unet
    original = dict(model.attn_processors)
    depths = {name: depth_of(name, len(model.up_blocks)) for name in original if ".attn1." in name}
    layers: dict[int, int] = {}
    for depth in depths.values():
        layers[depth] = layers.get(depth, 0) + 1
    store = AttentionStore(layers)
    recorders = {name: Recorder(store, depth) for name, depth in depths.items()}
    try:
        model.set_attn_processor(original | recorders)
        yield store
    finally:
        model.set_attn_processor(original)


def depth_of(name: str, blocks: int) -> int:
    """How often the latent was halved where this layer works."""
    part, index = name.split(".")[:2]
    match part:
        case "down_blocks":
            return int(index)
        case "up_blocks":
            return blocks - 1 - int(index)
        case _:
            return blocks - 1


def attend(
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H n d"],
    value: Float[Tensor, "B H n d"],
    mean: Float[Tensor, "B n n"],
    weight: float,
) -> Float[Tensor, "B n C"]:
    """Self-attention; on the way `mean` gains `weight` times the head mean of the probabilities."""
    output, log_sum = fused_attention(query, key, value)
    add_head_mean(mean, query, key, log_sum, weight)
    return output.transpose(1, 2).flatten(2)


@torch.library.custom_op("diffseg::attend", mutates_args=("mean",))
def attend_compiled(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    """`attend` as one opaque step, which torch.compile neither looks into nor breaks at."""
    return attend(query, key, value, mean, weight).contiguous()


@attend_compiled.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mean: Tensor, weight: float) -> Tensor:
    images, heads, cells, channels = query.shape
    return query.new_empty((images, cells, heads * channels))


def fused_attention(
    query: Float[Tensor, "B H n d"], key: Float[Tensor, "B H n d"], value: Float[Tensor, "B H n d"]
) -> tuple[Tensor, Float[Tensor, "B H n"]]:
    """What scaled_dot_product_attention returns here, and the log-sum-exp of each row of scores beside it."""
    if query.device.type == "cpu":
        output, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        return output, log_sum
    raise NotImplementedError


def add_head_mean(
    mean: Float[Tensor, "B n n"],
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H n d"],
    log_sum: Float[Tensor, "B H n"],
    weight: float,
) -> None:
    """Add `weight` times softmax(query key^T * d^-0.5).mean(heads) to `mean`, in place.

    Scores are made in float32: in SD 2 they pass the float16 maximum.
    """
    images, heads, cells, channels = query.shape
    shift = log_sum - math.log(weight / heads)
    for image in range(images):
        keys = key[image].float().transpose(-1, -2)
        for start in range(0, cells, TILE):
            rows = slice(start, start + TILE)
            scores = query[image, :, rows].float() * channels**-0.5 @ keys
            mean[image, rows] += scores.sub_(shift[image, :, rows, None]).exp_().sum(0)
