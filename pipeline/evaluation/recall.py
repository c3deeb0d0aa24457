"""Average recall of objects whatever their category, as COCO measures it: the matching is that of pycocotools."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.evaluation.bootstrap import ratio_interval
from diffseg.types import Int
from pipeline.exports.rle import encode

_OBJECT = {"area": 1, "iscrowd": 0, "ignore": 0}
MOST = (1, 100, 1000)  # instances of an image that count, those of the highest scores; COCO's 1, 10, 100 are too few


@dataclass(frozen=True, slots=True)
class Recalled:
    """Of one image. found: objects by MOST and by IoU of .50, .55 .. .95, of `objects`."""

    found: Int[np.ndarray, "3 10"]
    objects: int


def average_recall(images: Sequence[Recalled]) -> dict[str, float]:
    """AR at each of MOST, with the ends of its interval; NaN without objects."""
    found, objects = (
        np.stack([each.found.mean(1) for each in images]),
        np.array([each.objects for each in images], float),
    )
    intervals = ((f"ar_{most}", ratio_interval(found[:, at], objects)) for at, most in enumerate(MOST))
    return {name: value for called, each in intervals for name, value in each.called(called).items()}


def recalled(instances: Int[np.ndarray, "H W"], scores: Sequence[float], objects: Int[np.ndarray, "H W"]) -> Recalled:
    """The objects of one image that its instances find, both numbered from 0 on, void below 0. scores: of instances.

    Raises ConfigError where pycocotools is missing.
    """
    parts = ([mask for mask, _ in encode(part)] for part in (instances, objects))
    found, wanted = ([{**_OBJECT, "id": n, "segmentation": each} for n, each in enumerate(own, 1)] for own in parts)
    found = [each | {"score": score} for each, score in zip(found, scores, strict=True)]
    if not found or not wanted:
        return Recalled(np.zeros((len(MOST), 10), np.int64), len(wanted))
    from pycocotools.cocoeval import COCOeval

    match = COCOeval(iouType="segm")
    match.params.maxDets, match._gts, match._dts = list(MOST), {(1, 1): wanted}, {(1, 1): found}
    match.ious = {(1, 1): match.computeIoU(1, 1)}
    each_most = (match.evaluateImg(1, 1, [0, np.inf], most)["dtMatches"] for most in MOST)
    return Recalled(np.stack([(matches > 0).sum(1) for matches in each_most]), len(wanted))
