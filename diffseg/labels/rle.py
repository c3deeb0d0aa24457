"""Run-length encoding of label maps: horizontal runs of equal pixels, a few thousand in place of a million pixels.

Areas, boxes, borders and connected regions come from the runs of a whole batch at once, on the device, in operations
whose number does not depend on the number of images.

Letters: R runs of all images in the order of their pixels, E pairs of adjacent runs, S segments of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg.types import IGNORE, Int


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

    def per_run(self, values: Sequence[int | float]) -> Tensor:
        """A number of each image, for each of its runs."""
        return torch.tensor(values, device=self.start.device)[self.image]


@dataclass(frozen=True)
class Adjacency:
    """Pairs of runs that share a border, and its length in pixels."""

    first: Int[Tensor, " E"]
    second: Int[Tensor, " E"]
    border: Int[Tensor, " E"]


@dataclass(frozen=True)
class Segments:
    """The segments of a batch, image by image.

    of_run: the segment of each run, -1 for the ignore id. image: of each segment. first: of each image.
    area: pixels. box: x, y, width, height.
    """

    of_run: Int[Tensor, " R"]
    image: Int[Tensor, " S"]
    first: Int[Tensor, " B"]
    area: Int[Tensor, " S"]
    box: Int[Tensor, "S 4"]


def rle_encode(label_maps: Sequence[Int[Tensor, "_ _"]]) -> RunLengths:
    """Encode label maps of any sizes; no run spans two rows."""
    sizes = tuple((labels.shape[0], labels.shape[1]) for labels in label_maps)
    start = torch.cat([_is_start(labels).flatten() for labels in label_maps]).nonzero().flatten()
    flat = torch.cat([labels.flatten() for labels in label_maps])
    pixels = torch.tensor([h * w for h, w in sizes], device=flat.device)
    ends = pixels.cumsum(0)
    image = torch.searchsorted(ends, start, right=True)
    pixel = start - (ends - pixels)[image]
    width = torch.tensor([w for _, w in sizes], device=flat.device)[image]
    length = torch.diff(start, append=start.new_tensor([len(flat)]))
    return RunLengths(start, length, flat[start].long(), image, pixel // width, pixel % width, sizes)


def rle_decode(rle: RunLengths, values: Int[Tensor, " R"]) -> list[Int[Tensor, "_ _"]]:
    """Decode: for each image a map with the value of its run in every pixel."""
    flat = values.repeat_interleave(rle.length)
    parts = flat.split([h * w for h, w in rle.sizes])
    return [part.view(size) for part, size in zip(parts, rle.sizes, strict=True)]


def adjacent_runs(rle: RunLengths) -> Adjacency:
    """Pairs of runs side by side in one row, and of runs one above the other."""
    index = torch.arange(len(rle.start), device=rle.start.device)
    beside = index[1:][rle.column[1:] > 0]
    width = rle.per_run([w for _, w in rle.sizes])
    upper = index[rle.row + 1 < rle.per_run([h for h, _ in rle.sizes])]
    begin, end = (rle.start + width)[upper], (rle.start + width + rle.length)[upper]
    first = torch.searchsorted(rle.start, begin, right=True) - 1
    count = torch.searchsorted(rle.start, end) - first
    above = upper.repeat_interleave(count)
    within = torch.arange(len(above), device=index.device) - (count.cumsum(0) - count).repeat_interleave(count)
    below = first.repeat_interleave(count) + within
    low = torch.maximum(begin.repeat_interleave(count), rle.start[below])
    high = torch.minimum(end.repeat_interleave(count), (rle.start + rle.length)[below])
    return Adjacency(
        torch.cat([beside - 1, above]), torch.cat([beside, below]), torch.cat([torch.ones_like(beside), high - low])
    )


def connected_components(label: Int[Tensor, " R"], pairs: Adjacency) -> Int[Tensor, " R"]:
    """The region of each run, named by its first run: equal labels that touch along an edge."""
    same = label[pairs.first] == label[pairs.second]
    return union_find(len(label), pairs.first[same], pairs.second[same])


def union_find(count: int, first: Int[Tensor, " E"], second: Int[Tensor, " E"]) -> Int[Tensor, " R"]:
    """For each of `count` nodes the lowest node of its connected component.

    Every round links the parents of a pair to the lower of the two and then halves all paths, so that the number of
    rounds grows with the logarithm of the longest chain.
    """
    root = torch.arange(count, device=first.device)
    while True:
        low = torch.minimum(root[first], root[second])
        linked = root.scatter_reduce(0, root[first], low, "amin").scatter_reduce(0, root[second], low, "amin")
        linked = linked[linked]
        if torch.equal(linked, root):
            return root
        root = linked


def segments_of(rle: RunLengths, region: Int[Tensor, " R"]) -> Segments:
    """Group runs that share image and region into segments, in the order of the regions' numbers."""
    images = len(rle.sizes)
    real = rle.label != IGNORE
    stride = len(rle.start) + int(region.max()) + 1
    keys, found = torch.unique((rle.image * stride + region)[real], return_inverse=True)
    of_run = torch.full_like(region, -1).masked_scatter_(real, found)
    image = keys // stride
    first = torch.searchsorted(image, torch.arange(images, device=image.device))
    left, top = rle.column[real], rle.row[real]
    right = left + rle.length[real]
    count = len(keys)

    def reduced(values: Tensor, how: str) -> Tensor:
        return values.new_zeros(count).scatter_reduce_(0, found, values, how, include_self=False)

    x, y = reduced(left, "amin"), reduced(top, "amin")
    box = torch.stack([x, y, reduced(right, "amax") - x, reduced(top, "amax") + 1 - y], dim=-1)
    return Segments(of_run, image, first, reduced(rle.length[real], "sum"), box)


def _is_start(labels: Int[Tensor, "H W"]) -> Tensor:
    begins = torch.ones_like(labels, dtype=torch.bool)
    torch.ne(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    return begins
