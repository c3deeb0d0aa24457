"""Results: label maps of a batch are cleaned up, numbered, measured, and copied to the host.

Letters: R runs and S segments of all images (see rle.py).
"""

import numpy as np
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
    parted,
    per_pixel,
    rle_encode,
    segments_of,
)
from diffseg.transfer import download
from diffseg.types import IGNORE, Float, Int, Segment, Segmentation


def tidy(label_maps: list[Int[Tensor, "_ _"]], config: ResolvedConfig, labels: int) -> tuple[RunLengths, Segments]:
    """The segments of label maps; in `fast` mode without small regions, and split into connected ones if asked.

    labels: their number, at most.
    """
    rle = rle_encode(label_maps)
    if config.mode != "paper":
        rle = clean(rle, config.min_area)
    if config.mode == "paper" or not config.split_components:
        return rle, segments_of(rle, rle.label, labels)
    return rle, segments_of(rle, connected_components(rle.label, adjacent_runs(rle)), len(rle.start))


def painted_ids(rle: RunLengths, segments: Segments) -> Int[Tensor, " T"]:
    """The id of each pixel of all images: ids begin at 0 in every image, the ignore id is kept.

    In the smallest integers that hold them, where they are still to be copied to the host.
    """
    own = (segments.of_run - segments.first[rle.image]).where(segments.of_run >= 0, IGNORE)
    kinds = [torch.int32] if own.device.type == "cpu" else [torch.int8, torch.int16, torch.int32]
    return per_pixel(rle, own.to(next(kind for kind in kinds if segments.most <= torch.iinfo(kind).max)))


def segmentations(rle: RunLengths, segments: Segments, scores: Float[Tensor, " S"]) -> list[Segmentation]:
    """One result per image, by the only download of finished labels: a byte a pixel, and seven numbers a segment."""
    numbers = torch.stack([segments.image, segments.area, *segments.box.T])
    trusted, (image, *sides), flat = download(scores, numbers, painted_ids(rle, segments))
    own: list[list[Segment]] = [[] for _ in rle.sizes]
    for of, area, *box, trust in zip(*(each.tolist() for each in (image, *sides, trusted)), strict=True):
        own[of].append(Segment(len(own[of]), area, tuple(box), trust))
    label_maps = parted(flat.astype(np.int32, copy=False), rle.sizes)
    return [Segmentation(labels, tuple(each), quality(each)) for labels, each in zip(label_maps, own, strict=True)]
