"""Label maps as horizontal runs of equal pixels: a few thousand numbers in place of a million.

Areas, boxes, borders and connected regions come from the runs of a whole batch at once, on the device, in operations
whose number does not depend on the number of images.

Letters: R runs of all images in the order of their pixels, E pairs of touching runs, S segments of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg.types import IGNORE, Int


@dataclass(frozen=True)
class Runs:
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
class Touching:
    """Pairs of runs that share a border, and its length in pixels."""

    one: Int[Tensor, " E"]
    other: Int[Tensor, " E"]
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


def runs_of(label_maps: Sequence[Int[Tensor, "_ _"]]) -> Runs:
    """Cut label maps of any sizes into runs; none spans two rows."""
    sizes = tuple((labels.shape[0], labels.shape[1]) for labels in label_maps)
    start = torch.cat([_is_start(labels).flatten() for labels in label_maps]).nonzero().flatten()
    flat = torch.cat([labels.flatten() for labels in label_maps])
    pixels = torch.tensor([h * w for h, w in sizes], device=flat.device)
    ends = pixels.cumsum(0)
    image = torch.searchsorted(ends, start, right=True)
    place = start - (ends - pixels)[image]
    width = torch.tensor([w for _, w in sizes], device=flat.device)[image]
    length = torch.diff(start, append=start.new_tensor([len(flat)]))
    return Runs(start, length, flat[start].long(), image, place // width, place % width, sizes)


def paint(runs: Runs, values: Int[Tensor, " R"]) -> list[Int[Tensor, "_ _"]]:
    """For each image a map with the value of its run in every pixel."""
    flat = values.repeat_interleave(runs.length)
    parts = flat.split([h * w for h, w in runs.sizes])
    return [part.view(size) for part, size in zip(parts, runs.sizes, strict=True)]


def touching(runs: Runs) -> Touching:
    """Runs side by side in one row, and runs one above the other."""
    index = torch.arange(len(runs.start), device=runs.start.device)
    beside = index[1:][runs.column[1:] > 0]
    width = runs.per_run([w for _, w in runs.sizes])
    upper = index[runs.row + 1 < runs.per_run([h for h, _ in runs.sizes])]
    begin, end = (runs.start + width)[upper], (runs.start + width + runs.length)[upper]
    first = torch.searchsorted(runs.start, begin, right=True) - 1
    count = torch.searchsorted(runs.start, end) - first
    above = upper.repeat_interleave(count)
    within = torch.arange(len(above), device=index.device) - (count.cumsum(0) - count).repeat_interleave(count)
    below = first.repeat_interleave(count) + within
    low = torch.maximum(begin.repeat_interleave(count), runs.start[below])
    high = torch.minimum(end.repeat_interleave(count), (runs.start + runs.length)[below])
    return Touching(
        torch.cat([beside - 1, above]), torch.cat([beside, below]), torch.cat([torch.ones_like(beside), high - low])
    )


def connected(label: Int[Tensor, " R"], pairs: Touching) -> Int[Tensor, " R"]:
    """The region of each run, named by its first run: equal labels that touch along an edge."""
    same = label[pairs.one] == label[pairs.other]
    return union(len(label), pairs.one[same], pairs.other[same])


def union(count: int, one: Int[Tensor, " E"], other: Int[Tensor, " E"]) -> Int[Tensor, " R"]:
    """For each of `count` things, the lowest thing that it is linked to through any number of pairs.

    Every round hangs the parents of a pair below the lower of the two and then shortens all paths, so that rounds
    grow with the logarithm of the longest chain.
    """
    root = torch.arange(count, device=one.device)
    while True:
        low = torch.minimum(root[one], root[other])
        hung = root.scatter_reduce(0, root[one], low, "amin").scatter_reduce(0, root[other], low, "amin")
        hung = hung[hung]
        if torch.equal(hung, root):
            return root
        root = hung


def number(runs: Runs, region: Int[Tensor, " R"]) -> Segments:
    """Make segments of runs that share image and region, in the order of the regions' numbers."""
    images = len(runs.sizes)
    real = runs.label != IGNORE
    stride = len(runs.start) + int(region.max()) + 1
    keys, found = torch.unique((runs.image * stride + region)[real], return_inverse=True)
    of_run = torch.full_like(region, -1).masked_scatter_(real, found)
    image = keys // stride
    first = torch.searchsorted(image, torch.arange(images, device=image.device))
    left, top = runs.column[real], runs.row[real]
    right = left + runs.length[real]
    count = len(keys)

    def reduced(values: Tensor, how: str) -> Tensor:
        return values.new_zeros(count).scatter_reduce_(0, found, values, how, include_self=False)

    x, y = reduced(left, "amin"), reduced(top, "amin")
    box = torch.stack([x, y, reduced(right, "amax") - x, reduced(top, "amax") + 1 - y], dim=-1)
    return Segments(of_run, image, first, reduced(runs.length[real], "sum"), box)


def _is_start(labels: Int[Tensor, "H W"]) -> Tensor:
    begins = torch.ones_like(labels, dtype=torch.bool)
    torch.ne(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    return begins
