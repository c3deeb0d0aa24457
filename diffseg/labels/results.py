"""Results: label maps of a batch are cleaned up, numbered, measured, and copied to the host.

Letters: R runs and S segments of all images (see rle.py).
"""

import torch
from torch import Tensor

from diffseg.config import ResolvedConfig
from diffseg.cut import quality
from diffseg.labels.cleanup import clean
from diffseg.labels.rle import (
    RunLengths,
    Segments,
    adjacent_runs,
    connected_components,
    rle_decode,
    rle_encode,
    segments_of,
)
from diffseg.types import Float, Int, Segment, Segmentation


def tidy(label_maps: list[Int[Tensor, "_ _"]], config: ResolvedConfig) -> tuple[RunLengths, Segments]:
    """The segments of label maps; in `fast` mode without small regions, and split into connected ones if asked."""
    rle = rle_encode(label_maps)
    if config.mode == "paper":
        return rle, segments_of(rle, rle.label)
    rle = clean(rle, config.min_area)
    region = connected_components(rle.label, adjacent_runs(rle)) if config.split_components else rle.label
    return rle, segments_of(rle, region)


def ids(segments: Segments) -> Int[Tensor, " R"]:
    """The id of each run: ids begin at 0 in every image, the ignore id is kept."""
    of_run = segments.of_run
    first = segments.first[segments.image[of_run.clamp(min=0)]]
    return (of_run - first).where(of_run >= 0, of_run).int()


def segmentations(rle: RunLengths, segments: Segments, scores: Float[Tensor, " S"]) -> list[Segmentation]:
    """One result per image. Decoded maps are the only large transfer of a batch; a segment is seven numbers."""
    label_maps = [decoded.cpu().numpy() for decoded in rle_decode(rle, ids(segments))]
    numbers = torch.stack([segments.image, segments.area, *segments.box.T], dim=-1).tolist()
    of_image: list[list[Segment]] = [[] for _ in label_maps]
    for (image, area, x, y, width, height), score in zip(numbers, scores.tolist(), strict=True):
        own = of_image[image]
        own.append(Segment(len(own), area, (x, y, width, height), score))
    return [Segmentation(labels, tuple(own), quality(own)) for labels, own in zip(label_maps, of_image, strict=True)]
