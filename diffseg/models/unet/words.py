"""Attention to words that a UNet is not asked for: the queries of its pass meet the keys of other prompts.

The pass stays as it is, to the bit. Letters: B images, n cells, K prompts of T tokens, W words of them all.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.models.unet.capture import attention_sites
from diffseg.types import Float

DEEPEST = 3  # halvings of the latent from which on layers are left out: of 64 x 64 cells 8 x 8 are left (as in DAAM)
COPIES = 3  # of a prompt's scores for all heads of a layer, that live at once


class WordReader:
    """Adds up a pass's attention to words, as DAAM does (Tang et al., ACL 2023): over heads and layers, bicubic.

    Tokens of a word are averaged before they are enlarged: that differs only where bicubic weights leave less than 0.
    """

    def __init__(self, unet: nn.Module, hidden: Float[Tensor, "K T c"], places: Sequence[Sequence[range]]) -> None:
        """hidden: what text encoders make of prompts that list words. places: of their words, by tokens."""
        self.hidden, self.sums, self.grid = hidden, list[Any](), (0, 0)
        self.finest = min(depth for depth, _ in attention_sites(unet))
        sites = [site for site in attention_sites(unet, "attn2") if site[1]]
        self.shares = list[Tensor]()
        for own in places:
            share = torch.zeros(hidden.shape[1], len(own) + 1)
            share[1 : own[-1].stop, -1] = 1  # of all that is listed: begin, end and padding are left out
            for number, place in enumerate(own):
                share[place.start : place.stop, number] = 1 / len(place)
            self.shares.append(share.to(hidden.device))
        heads = max(layer.heads for _, layer in sites)
        self.numbers = COPIES * heads * hidden.shape[1] + 2 * sum(map(len, places))  # a finest cell's, of an image
        for depth, layer in [site for site in sites if site[0] < DEEPEST] or sites:
            layer.register_forward_pre_hook(partial(self._add, depth - self.finest))

    def begin(self, latent: tuple[int, int]) -> None:
        """Listen to the pass that comes, over a latent of this height and width."""
        self.grid, self.sums = (latent[0] >> self.finest, latent[1] >> self.finest), [0.0] * len(self.shares)

    def end(self) -> Float[Tensor, "B W n"]:
        """Of each cell's attention to all that is listed the share of each word (DAAM's `normalize`, over all prompts:
        each begins with the same token, against which the others are weighed). The next pass is not listened to.
        """
        sums, self.sums = self.sums, []
        shares: Tensor = torch.cat([each[:, :-1] for each in sums], 1) / sum(each[:, -1:] for each in sums)
        return shares.nan_to_num().flatten(2)

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
