"""Average recall of objects whatever their category, as COCO measures it: the matching is that of pycocotools."""

from dataclasses import dataclass

import numpy as np

from diffseg.types import Float, Int
from pipeline.exports.rle import encode

_OBJECT = {"area": 1, "iscrowd": 0, "ignore": 0}
MOST = (1, 100, 1000)  # instances of an image that count, those of the highest scores; COCO's 1, 10, 100 are too few


@dataclass(frozen=True, slots=True)
class Recalled:
    """found: objects by MOST and by IoU of .50, .55 .. .95, of `objects`; the sum of two is of both images."""

    found: Int[np.ndarray, "3 10"]
    objects: int

    def __add__(self, other: "Recalled") -> "Recalled":
        return Recalled(self.found + other.found, self.objects + other.objects)

    @property
    def average(self) -> dict[str, float]:
        """AR at each of MOST; NaN without objects."""
        share = self.found.mean(1) / self.objects if self.objects else np.full(len(MOST), np.nan)
        return {f"ar_{most}": float(value) for most, value in zip(MOST, share, strict=True)}


def recalled(
    instances: Int[np.ndarray, "H W"], scores: Float[np.ndarray, " I"], objects: Int[np.ndarray, "H W"]
) -> Recalled:
    """The objects of one image that its instances find; numbers below 0 are neither.

    Raises ConfigError where pycocotools is missing.
    """
    found, wanted = (
        {
            number: {**_OBJECT, "id": number + 1, "segmentation": mask}
            for number, (mask, area) in enumerate(encode(part))
            if area
        }
        for part in (instances, objects)
    )
    gts, dts = list(wanted.values()), [each | {"score": float(scores[number])} for number, each in found.items()]
    if not found or not wanted:
        return Recalled(np.zeros((len(MOST), 10), np.int64), len(wanted))
    from pycocotools.cocoeval import COCOeval

    match = COCOeval(iouType="segm")
    match.params.maxDets, match._gts, match._dts = list(MOST), {(1, 1): gts}, {(1, 1): dts}
    match.ious = {(1, 1): match.computeIoU(1, 1)}
    each_most = (match.evaluateImg(1, 1, [0, np.inf], most)["dtMatches"] for most in MOST)
    return Recalled(np.stack([(matches > 0).sum(1) for matches in each_most]), len(wanted))
