"""Edges: labels painted from coarse cells are moved to where the picture changes.

Pixel-adaptive refinement (section 3.3 of Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels",
2020): in every round a pixel takes the mean of its neighbours' labels, those of a colour like its own weighing most. As
published, neighbours at all distances have a part in every round; here rounds take turns between two sets of distances,
which is worth as much for less. What differs in no colour from its surroundings and is small is lost in them.

Letters: T pixels of some images one behind the other, R rows and C columns of them, G groups of neighbours, n
neighbours in a group, K labels, c channels of a label's code.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from diffseg.transfer import kept, upload
from diffseg.types import Float, Int, UInt8

Schedule = tuple[tuple[int, ...], ...]  # distances in pixels of the neighbours that a round looks at, as many in each

SCHEDULE: Schedule = ((1, 4, 12), (2, 8, 24)) * 5
ALPHA = 0.1  # of the deviation around a pixel: a colour that far off weighs a third, as published
PIXELS = {"cpu": 1, "cuda": 1 << 22}  # refined at a time, or one image; 3 GB on a GPU
TILE = {"cpu": 1 << 12, "cuda": 1 << 30}  # pixels whose weights are made at a time: what fits into a processor's cache
ORTHOGONAL = 16  # labels that have a channel each

RING = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]


def planes(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], device: torch.device) -> UInt8[Tensor, "3 T"]:
    """The channels of pictures on a device, each of all pixels."""
    colours: Tensor = torch.cat(upload(device, *(each.reshape(-1) for each in pictures))).view(-1, 3).T.contiguous()
    return colours


def refine_edges(
    label_maps: Sequence[Int[Tensor, "_ _"]], colours: UInt8[Tensor, "3 T"], labels: int, schedule: Schedule = SCHEDULE
) -> list[Int[Tensor, "_ _"]]:
    """Label maps without void pixels, fitted to the colours of their pixels. labels: their number, at most."""
    if labels < 2:
        return list(label_maps)
    sizes = [each.numel() for each in label_maps]
    flat, done = torch.empty(sum(sizes), dtype=torch.int32, device=colours.device), 0
    code = codes_on(labels, colours.device)
    for part in _parts(sizes, PIXELS[flat.device.type]):
        shown = colours[:, done : done + sum(sizes[part])]
        for tile in spread(label_maps[part], shown, code, schedule).split(TILE[flat.device.type]):
            flat[done : done + len(tile)] = (tile @ code.T).max(1).indices
            done += len(tile)
    return [part.view(each.shape) for part, each in zip(flat.split(sizes), label_maps, strict=True)]


def _parts(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of images of at most so many pixels together, or of one image."""
    first = 0
    for last in range(1, len(sizes) + 1):
        if last == len(sizes) or sum(sizes[first : last + 1]) > most:
            yield slice(first, last)
            first = last


def spread(
    label_maps: Sequence[Int[Tensor, "_ _"]],
    colours: UInt8[Tensor, "3 T"],
    code: Float[Tensor, "K c"],
    schedule: Schedule,
) -> Float[Tensor, "T c"]:
    """The mixture of codes that every pixel has in the end. code: of the labels."""
    flat = torch.cat([each.flatten() for each in label_maps])
    groups = tuple(dict.fromkeys(schedule))
    sizes = tuple((each.shape[0], each.shape[1]) for each in label_maps)
    index, weight = _neighbours(colours.float(), *_tables(sizes, groups, flat.device))
    bags = torch.arange(0, index[0].numel(), index.shape[-1], dtype=index.dtype, device=index.device)
    mixture = code[flat]
    for group in schedule:
        g = groups.index(group)
        each = weight[g].view(-1)
        mixture = embedding_bag(index[g].view(-1), mixture, bags, mode="sum", per_sample_weights=each)
    return mixture


@kept
def codes_on(labels: int, device: torch.device) -> Float[Tensor, "K c"]:
    """The codes of labels, on a device."""
    return upload(device, label_codes(labels))[0]


@cache
def label_codes(labels: int) -> Float[np.ndarray, "K c"]:
    """A vector for each label. Those of up to 16 labels are orthogonal; of more, products are 1/4 at most.

    A pixel is a mixture of few labels, so that its products still tell the foremost, while a channel for each of 64
    labels would take eight times as long on a processor. The codes are four bases of Walsh functions, each times the
    signs of another quadratic form, as in a Kerdock code.
    """
    if labels <= ORTHOGONAL:
        return np.eye(labels, dtype=np.float32)
    bits = max(4, (labels - 1).bit_length() - 2)
    points = (np.arange(1 << bits)[:, None] >> np.arange(bits) & 1).astype(np.float64)
    walsh = np.cos(np.pi * (points @ points.T)).round()
    pairs = np.stack([points[:, i] * points[:, j] for i in range(bits) for j in range(i)], 1)
    bases = [walsh]
    for form in product((0, 1), repeat=pairs.shape[1]):
        basis = walsh * np.cos(np.pi * (pairs @ np.array(form))).round()
        if all(4 * np.abs(basis @ other.T).max() <= len(points) for other in bases):
            bases.append(basis)
        if len(bases) == 4:
            break
    codes: Float[np.ndarray, "K c"] = np.concatenate(bases)[:labels].astype(np.float32) / 2 ** (bits / 2)
    return codes


def _neighbours(
    colours: Float[Tensor, "3 T"],
    rows: Int[Tensor, "G n R"],
    columns: Int[Tensor, "G n C"],
    widths: Int[Tensor, " R"],
    shifts: Int[Tensor, " R"],
) -> tuple[Int[Tensor, "G T n"], Float[Tensor, "G T n"]]:
    """Which pixels are neighbours, and how much each weighs: a softmax over a group of the distance in colour.

    The distance is the mean over channels of the difference to the pixel over the deviation of all neighbours, the
    pixel itself counted once a distance, as published.
    """
    pixels, (groups, size, _) = colours.shape[1], rows.shape
    shape = groups, pixels, size
    index = torch.empty(shape, dtype=torch.int32, device=rows.device)  # half the traffic of int64
    weight = torch.empty(shape, device=rows.device)
    row = torch.repeat_interleave(widths, output_size=pixels)
    column = torch.arange(pixels, device=rows.device).sub_(shifts[row])
    taps = groups * size * (len(RING) + 1) // len(RING)
    tile = TILE[colours.device.type]
    for first in range(0, pixels, tile):
        here = slice(first, first + tile)
        near = rows[..., row[here]].add_(columns[..., column[here]])
        apart = colours[:, near].sub_(colours[:, None, None, here])
        total, squares = apart.sum((1, 2)), apart.square().sum((1, 2))
        deviation = torch.addcmul(squares, total, total, value=-1 / taps).clamp_(min=0).sqrt_()
        scale = deviation.mul_(-ALPHA / (taps - 1) ** 0.5).sub_(1e-8)
        index[:, here] = near.mT
        weight[:, here] = apart.abs_().div_(scale[:, None, None]).mean(0).softmax(1).mT
    return index, weight


@kept
def _tables(
    sizes: tuple[tuple[int, int], ...], groups: tuple[tuple[int, ...], ...], device: torch.device
) -> list[Tensor]:
    """From where the neighbours of a pixel are read: a part of the index for its row and one for its column.

    Beyond the border lies the border's own pixel. Then the width of every row, and what is to be taken from the
    number of a pixel to have its column among those of all images.
    """
    steps = np.array([[(y * d, x * d) for d in group for y, x in RING] for group in groups])[..., None, :]
    first = np.cumsum([0] + [h * w for h, w in sizes])
    columns = np.cumsum([0] + [w for _, w in sizes])

    def reached(pixels: int, axis: int) -> Int[np.ndarray, "G n p"]:
        places: Int[np.ndarray, "G n p"] = np.clip(np.arange(pixels) + steps[..., axis], 0, pixels - 1)
        return places

    return upload(
        device,
        np.concatenate([reached(h, 0) * w + start for (h, w), start in zip(sizes, first, strict=False)], 2),
        np.concatenate([reached(w, 1) for _, w in sizes], 2),
        np.concatenate([np.full(h, w) for h, w in sizes]),
        np.concatenate([start + np.arange(h) * w - c for (h, w), start, c in zip(sizes, first, columns, strict=False)]),
    )
