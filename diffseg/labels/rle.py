"""Run-length encoding of label maps: horizontal runs of equal pixels, a few thousand in place of a million pixels.

Areas, boxes, borders and connected regions come from the runs of a whole batch at once, on the device, in operations
whose number does not depend on the number of images.

Letters: R runs of all images in the order of their pixels, E pairs of adjacent runs, S segments of all images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffseg.transfer import constant
from diffseg.types import IGNORE, Int

HALVINGS = 8  # of paths before the first round: as many as a column of 256 rows needs
ROUNDS = {"cpu": 1, "cuda": 4}  # of linking before the host looks: as many as batches of photos need

Pixels = TypeVar("Pixels", Tensor, np.ndarray)


@dataclass(frozen=True)
class RunLengths:
    """The label maps of a batch.

    start: first pixel, counted through all images one behind the other. length: in pixels. label: of each run.
    image, row, column: where the first pixel lies.
    sizes: height and width of each image.
    """

    start: Int[Tensor, " R"]
    length: Int[Tensor, " R"]
    label: Int[Tensor, " R"]
    image: Int[Tensor, " R"]
    row: Int[Tensor, " R"]
    column: Int[Tensor, " R"]
    sizes: tuple[tuple[int, int], ...]

    def per_run(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Numbers of each image, for each of its runs."""
        of_image: Tensor = constant(tuple(values), dtype, self.start.device)
        return of_image[self.image]


@dataclass(frozen=True)
class Adjacency:
    """Pairs of runs that share a border, and its length in pixels.

    begin: its first pixel, of the run to the right or below.
    """

    first: Int[Tensor, " E"]
    second: Int[Tensor, " E"]
    border: Int[Tensor, " E"]
    begin: Int[Tensor, " E"]


@dataclass(frozen=True)
class Segments:
    """The segments of a batch, image by image.

    of_run: the segment of each run, -1 for the ignore id. image: of each segment. first: of each image.
    area: pixels. box: x, y, width, height. most: an image has no more.
    """

    of_run: Int[Tensor, " R"]
    image: Int[Tensor, " S"]
    first: Int[Tensor, " B"]
    area: Int[Tensor, " S"]
    box: Int[Tensor, "S 4"]
    most: int


def rle_encode(label_maps: Sequence[Int[Tensor, "_ _"]]) -> RunLengths:
    """Encode label maps of any sizes; no run spans two rows."""
    sizes = tuple((labels.shape[0], labels.shape[1]) for labels in label_maps)
    flat = torch.cat([labels.flatten() for labels in label_maps])
    begins, first = torch.ones_like(flat, dtype=torch.bool), 0
    for (height, width), group in groupby(sizes):
        last = first + len(list(group)) * height * width
        labels, own = (part[first:last].view(-1, width) for part in (flat, begins))
        torch.ne(labels[:, 1:], labels[:, :-1], out=own[:, 1:])
        first = last
    start = begins.nonzero().flatten()
    ends = tuple(accumulate(h * w for h, w in sizes))
    image = torch.searchsorted(constant(ends, torch.long, flat.device), start, right=True)
    before, width = constant(((0, *ends[:-1]), tuple(w for _, w in sizes)), torch.long, flat.device)[:, image]
    pixel = start - before
    length = torch.cat([start[1:], constant(ends[-1:], torch.long, flat.device)]) - start
    return RunLengths(start, length, flat[start].long(), image, pixel // width, pixel % width, sizes)


def per_pixel(rle: RunLengths, values: Int[Tensor, " R"]) -> Int[Tensor, " T"]:
    """The value of its run for every pixel of all images."""
    return values.repeat_interleave(rle.length, output_size=sum(h * w for h, w in rle.sizes))


def parted(flat: Pixels, sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
    """Label maps, one view each, of pixels that lie image behind image."""
    ends = accumulate(h * w for h, w in sizes)
    return [flat[end - h * w : end].reshape(h, w) for end, (h, w) in zip(ends, sizes, strict=True)]


def adjacent_runs(rle: RunLengths) -> Adjacency:
    """Pairs of runs side by side in one row, and of runs one above the other: three a run, a number known beforehand.

    Where there is nothing beside a run, and where a pair would be named twice, it is a pair of the run with itself.
    """
    index = torch.arange(len(rle.start), device=rle.start.device)
    height, width = rle.per_run(rle.sizes, torch.long).unbind(-1)
    shift = torch.stack([-width, width])
    begin = rle.start + shift  # of the run, moved one row up and one row down
    other = torch.searchsorted(rle.start, begin, right=True).sub_(1).clamp_(min=0)
    starts, end = rle.start[other], rle.start + rle.length
    real = torch.stack([rle.row > 0, (rle.row + 1 < height) & (starts[1] != begin[1])])
    beside = index - (rle.column > 0).long()
    border = torch.minimum(end + shift, starts + rle.length[other]) - begin
    return Adjacency(
        torch.cat([beside[None], other.where(real, index)]).flatten(),
        index.repeat(3),
        torch.cat([torch.ones_like(index), border.where(real, 0).flatten()]),
        torch.cat([rle.start, rle.start, begin[1].where(real[1], rle.start)]),
    )


def connected_components(label: Int[Tensor, " R"], pairs: Adjacency) -> Int[Tensor, " R"]:
    """The region of each run, named by its first run: equal labels that touch along an edge."""
    same = label[pairs.first] == label[pairs.second]
    if label.device.type == "cpu":
        return union_find(len(label), pairs.first[same], pairs.second[same])
    return union_find(len(label), pairs.first, pairs.second.where(same, pairs.first))  # a mask as index would wait


def union_find(count: int, first: Int[Tensor, " E"], second: Int[Tensor, " E"]) -> Int[Tensor, " R"]:
    """For each of `count` nodes the lowest node of its connected component.

    Every node is linked to the lowest beside it, then all paths are halved again and again. Every round then links the
    parents of a pair to the lower of the two, so that the number of rounds grows with the logarithm of the longest
    chain; a GPU makes some before the host asks whether all is done.
    """
    ends = torch.stack([torch.minimum(first, second), torch.maximum(first, second)])
    root = torch.arange(count, device=first.device).scatter_reduce_(0, ends[1], ends[0], "amin")
    for _ in range(HALVINGS):
        root = root[root]
    while True:
        for _ in range(ROUNDS[first.device.type]):
            linked = root[ends]
            low = torch.minimum(linked[0], linked[1])
            root = root.scatter_reduce_(0, linked.flatten(), low.repeat(2), "amin")
            root = root[root]
        linked, above = root[ends], root[root]
        if torch.equal(torch.cat([linked[0], root]), torch.cat([linked[1], above])):
            return root
        root = above


def segments_of(rle: RunLengths, region: Int[Tensor, " R"], regions: int) -> Segments:
    """Group runs that share image and region into segments, in the order of the regions' numbers.

    regions: numbers below which all are.
    """
    images = len(rle.sizes)
    key = (rle.image * regions + region).where(rle.label != IGNORE, images * regions)  # the last is of no segment
    number = torch.zeros(images * regions + 1, dtype=torch.long, device=key.device).index_fill_(0, key, 1)
    number = number[:-1].cumsum(0)
    count = int(number[-1])
    of_run = torch.nn.functional.pad(number, (0, 1), value=count + 1)[key] - 1
    right = rle.column + rle.length
    sides = torch.stack([-rle.column, -rle.row, right, rle.row + 1, rle.image])
    sides = torch.full((5, count + 1), -sys.maxsize, dtype=torch.long, device=key.device).scatter_reduce_(
        1, of_run.expand(5, -1), sides, "amax"
    )[:, :count]
    area = torch.zeros(count + 1, dtype=torch.long, device=key.device).scatter_add_(0, of_run, rle.length)[:count]
    corner = -sides[:2]
    box = torch.cat([corner, sides[2:4] - corner]).T
    image = sides[4]
    first = torch.searchsorted(image, torch.arange(images, device=image.device))
    return Segments(of_run.where(of_run < count, -1), image, first, area, box, min(count, regions))
