"""Attention of a UNet, averaged over heads and layers while it runs.

Input: a UNet about to run. Output: one map per level, the mean over heads and layers; shares of words where it is given
prompts that list them: queries of the pass meet their keys, and the pass itself stays as it is, to the bit.

Letters: B images, H heads, n cells of a level, d channels of a head, K prompts of T tokens, W words of them all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.models.attention import AttentionMaps, add_head_mean, attend
from diffseg.types import Float

DEEPEST = 3  # halvings of the latent from which on words are not read: of 64 x 64 cells 8 x 8 are left (as in DAAM)
COPIES = 3  # of a prompt's scores for all heads of a layer, that live at once


class AttentionStore:
    """The running means of one forward pass, one a level."""

    def __init__(self, layers: Mapping[int, int]) -> None:
        self.layers = layers  # of each depth, the halvings of the latent
        self.means: dict[int, Tensor] = {}
        self.features: tuple[int, Tensor] | None = None  # with the depth of their cells

    def mean(self, depth: int, query: Float[Tensor, "B H n d"]) -> Float[Tensor, "B n n"]:
        """The running mean of a level, zeros before its first layer."""
        if depth not in self.means:
            images, _, cells, _ = query.shape
            self.means[depth] = query.new_zeros((images, cells, cells), dtype=torch.float32)
        return self.means[depth]

    def maps(self, latent: tuple[int, int]) -> AttentionMaps:
        """The levels, finest first. latent: height and width of the UNet's input."""
        if not self.means:
            raise RuntimeError("no self-attention was recorded: run the UNet inside the block first")
        depths = sorted(self.means)
        levels = tuple(self.means[depth] for depth in depths)
        grid = latent[0] >> depths[0], latent[1] >> depths[0]
        if self.features is None:
            return AttentionMaps(levels, grid)
        depth, vectors = self.features
        return AttentionMaps(levels, grid, vectors, (latent[0] >> depth, latent[1] >> depth))


@dataclass(eq=False)
class Recorder:
    """An attention processor with the arithmetic of the stock one, which also adds to its level.

    features: keep the output too.
    """

    store: AttentionStore
    depth: int
    features: bool = False

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Self-attention over [B, n, channels]; the output is the stock processor's (see `fused_attention`)."""
        layer: Any = attn
        query, key, value = (
            project(hidden_states).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project in (layer.to_q, layer.to_k, layer.to_v)
        )
        weight = 1 / self.store.layers[self.depth]
        mean = self.store.mean(self.depth, query)
        mixed: Tensor = layer.to_out[0](attend(query, key, value, mean, weight))
        output: Tensor = mixed / layer.rescale_output_factor
        if self.features:
            self.store.features = self.depth, output
        return output


@contextmanager
def capture_attention(unet: nn.Module, features: bool = False) -> Iterator[AttentionStore]:
    """Record attention while the block runs, then restore the model.

    features: keep the output of the last self-attention of the encoder too (DiffCut, arXiv 2406.02842).
    """
    sites = attention_sites(unet)
    originals = [layer.processor for _, layer in sites]
    store = AttentionStore(Counter(depth for depth, _ in sites))
    try:
        encoder = set(unet.get_submodule("down_blocks").modules()) if features else set()
        last = [layer for _, layer in sites if layer in encoder][-1:]
        for depth, layer in sites:
            layer.set_processor(Recorder(store, depth, layer in last))
        yield store
    finally:
        for (_, layer), original in zip(sites, originals, strict=True):
            layer.set_processor(original)


def attention_sites(unet: nn.Module, name: str = "attn1") -> list[tuple[int, Any]]:
    """Every self-attention layer of a UNet in order of execution, with its depth: how often the latent was halved.
    name: "attn2" for cross-attention, with None for one that was cut off.
    """
    model: Any = unet
    deepest = len(model.down_blocks) - 1
    blocks = [*enumerate(model.down_blocks), (deepest, model.mid_block)]
    blocks += [(deepest - index, block) for index, block in enumerate(model.up_blocks)]
    return [
        (depth, getattr(inner, name))
        for depth, block in blocks
        for transformer in getattr(block, "attentions", ())
        for inner in transformer.transformer_blocks
    ]


class WordReader:
    """Adds up a pass's attention to words over heads and layers, as DAAM does (Tang et al., ACL 2023), but that tokens
    are averaged before they are enlarged: it differs only where bicubic weights leave less than 0.
    """

    def __init__(self, unet: nn.Module, hidden: Float[Tensor, "K T c"], places: Sequence[Sequence[range]]) -> None:
        """hidden: what text encoders make of prompts that list words. places: of their words, by tokens."""
        self.hidden, self.sums, self.grid, self.shares = hidden, list[Any](), (0, 0), list[Tensor]()
        for own in places:
            share = torch.zeros(hidden.shape[1], len(own) + 1)
            share[1 : own[-1].stop, -1] = 1  # of all that is listed: begin, end and padding are left out
            for number, place in enumerate(own):
                share[place.start : place.stop, number] = 1 / len(place)
            self.shares.append(share.to(hidden.device))
        self.finest = min(depth for depth, _ in attention_sites(unet))
        sites = [site for site in attention_sites(unet, "attn2") if site[1]]
        for depth, layer in [site for site in sites if site[0] < DEEPEST] or sites:
            layer.register_forward_pre_hook(partial(self._add, depth - self.finest))
        heads = max(layer.heads for _, layer in sites)
        self.numbers = COPIES * heads * hidden.shape[1] + 2 * sum(map(len, places))  # a finest cell's, of an image

    def begin(self, latent: tuple[int, int]) -> None:
        """Listen to the pass that comes, over a latent of this height and width."""
        self.grid, self.sums = (latent[0] >> self.finest, latent[1] >> self.finest), [0.0] * len(self.shares)

    def end(self) -> Float[Tensor, "B W h w"]:
        """Of each cell's attention to all that prompts list the share of each word: DAAM's `normalize`."""
        sums, self.sums = self.sums, []
        shares: Tensor = torch.cat([each[:, :-1] for each in sums], 1) / sum(each[:, -1:] for each in sums)
        return shares.nan_to_num()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it is no part of the pass that is compiled
    def _add(self, halvings: int, layer: Any, given: tuple[Any, ...]) -> None:
        if not self.sums:
            return
        query, keys = (
            project(each).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
            for project, each in ((layer.to_q, given[0]), (layer.to_k, self.hidden))
        )
        own = self.grid[0] >> halvings, self.grid[1] >> halvings
        for number, (key, share) in enumerate(zip(keys, self.shares, strict=True)):  # all at once would fill the memory
            scores = (query @ key.mT).mul_(layer.scale).softmax(-1)
            maps = (scores.mean(1) @ share).mT.unflatten(-1, own)
            if own != self.grid:
                maps = nn.functional.interpolate(maps, self.grid, mode="bicubic").clamp_(min=0)
            self.sums[number] = self.sums[number] + maps


def rehearse(unet: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Compile the kernels that capture needs on a device before the first images; log once what cannot be compiled."""
    for heads, width in sorted({(layer.heads, layer.to_q.out_features) for _, layer in attention_sites(unet)}):
        hidden = torch.zeros((1, 16, width), device=device, dtype=dtype)
        query = hidden.unflatten(-1, (heads, -1)).transpose(1, 2)
        mean = torch.zeros((1, 16, 16), device=device)
        add_head_mean(mean, query, query, torch.zeros((1, heads, 16), device=device))


def cut_after_last_attention(unet: nn.Module) -> None:
    """Remove the layers after the last self-attention: no map depends on them, and the UNet's output is not used.

    It saves 2 % of an SD 1 pass and 7 % of an SDXL one, and the memory of the weights.
    """
    model: Any = unet
    last = max(index for index, block in enumerate(model.up_blocks) if getattr(block, "attentions", None))
    model.up_blocks = model.up_blocks[: last + 1]
    model.up_blocks[last].upsamplers = None
    model.conv_norm_out, model.conv_out = None, nn.Identity()
    transformer = model.up_blocks[last].attentions[-1]
    transformer.proj_out = nn.Identity()
    block = transformer.transformer_blocks[-1]
    block.attn2, block.norm3, block.ff = None, nn.Identity(), nn.Identity()
