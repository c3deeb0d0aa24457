"""How well two partitions of one image agree, whatever their ids: regions, pairs of pixels, boundaries.

Letters: H x W pixels, S segments of the prediction, R regions of the truth.
Pixels of the truth below 0 are ignored everywhere. Pixels of the prediction below 0 belong to no segment.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt

from diffseg.types import Bool, Int, Integer

TOLERANCE = 0.0075  # of the image's diagonal: the distance at which BSDS lets two boundaries be the same


def overlaps(
    prediction: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, "S R"], Int[np.ndarray, " R"]]:
    """Pixels of each (segment, region), and of each region the pixels no segment claims; absent ids take no room."""
    labelled = truth >= 0
    segments, segment = np.unique(prediction[labelled], return_inverse=True)
    regions, region = np.unique(truth[labelled], return_inverse=True)
    cells = segment * len(regions) + region
    table = np.bincount(cells, minlength=len(segments) * len(regions)).reshape(len(segments), len(regions))
    claimed = segments >= 0
    return table[claimed], table[~claimed].sum(0)


def covering(table: Int[np.ndarray, "S R"], unclaimed: Int[np.ndarray, " R"]) -> float:
    """How well the segments cover the regions, in [0, 1]: the best overlap of each, weighted by its area.

    Section 3.1.3 of Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation" (2011).
    NaN without labelled pixels.
    """
    regions = table.sum(0) + unclaimed
    if regions.sum() == 0:
        return float("nan")
    if len(table) == 0:
        return 0.0
    union = table.sum(1)[:, None] + regions[None, :] - table
    return float((regions * (table / union).max(0)).sum() / regions.sum())


def adjusted_rand(table: Int[np.ndarray, "S R"], unclaimed: Int[np.ndarray, " R"]) -> float:
    """Adjusted Rand index (Hubert and Arabie, 1985): 1 the same partition, 0 what chance gives.

    What no segment claims counts as one segment. NaN without labelled pixels.
    """
    table = np.vstack([table, unclaimed]).astype(float)
    pixels = table.sum()
    if pixels == 0:
        return float("nan")
    together, segments, regions = (_pairs(part) for part in (table, table.sum(1), table.sum(0)))
    chance = segments * regions / max(1.0, pixels * (pixels - 1) / 2)
    most = (segments + regions) / 2
    return float((together - chance) / (most - chance)) if most != chance else 1.0


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())


def boundaries(label_map: Integer[np.ndarray, "H W"], labelled: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels whose right or lower neighbour has another id; one pixel wide. Edges of what is ignored are none."""
    edge = np.zeros(label_map.shape, bool)
    edge[:, :-1] |= (label_map[:, :-1] != label_map[:, 1:]) & labelled[:, :-1] & labelled[:, 1:]
    edge[:-1] |= (label_map[:-1] != label_map[1:]) & labelled[:-1] & labelled[1:]
    return edge


def boundary_f(
    prediction: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "H W"], tolerance: float = TOLERANCE
) -> float:
    """Harmonic mean of the shares of predicted and of true boundary that have the other one near.

    Near is within `tolerance` of the diagonal. Unlike the BSDS benchmark no pixel is used up by its match, so
    figures compare among each other, not with that benchmark's. 1 where neither has a boundary.
    """
    labelled = truth >= 0
    ours, theirs = boundaries(prediction, labelled), boundaries(truth, labelled)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    reach = tolerance * float(np.hypot(*truth.shape))
    precision = (distance_transform_edt(~theirs)[ours] <= reach).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= reach).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
