"""Scores of a tree's segments: what is known of them by attention and by shape, and the IoU that both let expect.

No torch here: readers of finished labels score segments too. Letters: S segments of one image.
"""

import numpy as np

from diffseg.annotations import Float, Int
from diffseg.tree import FEATURES, WHOLE

# Coefficients of `prior`: of 120 scenes by `tiny`, cut into 4, 8 and 16 segments (infra/benchmarks/masks/scores.py).
# The margin's tenth percentile and that at borders, and contact with the image's border, add nothing to these
PRIOR = {
    "margin": 1.191,
    "stability": 0.778,
    "log_area": 0.86,
    "elongation": -0.09,
    "contrast": 4.536,
    "log_compactness": 0.725,
}
CONSTANT = 1.434
GEOMETRY = ("log_area", "elongation", "contact")  # columns of `geometry`


def geometry(areas: Int[np.ndarray, " S"], boxes: Int[np.ndarray, "S 4"]) -> Float[np.ndarray, "S 3"]:
    """GEOMETRY of all segments of an image, from their areas in pixels and their boxes (x, y, width, height).

    log_area: of the share of the labelled pixels. elongation: logarithm of the longer side squared by the area; 0 for a
    square, high for what is long, bent or scattered. contact: share of the box's four sides that lie on the border of
    what is labelled.
    """
    areas = np.asarray(areas, float)
    corners = np.hstack([boxes[:, :2], -boxes[:, :2] - boxes[:, 2:]])
    contact = (corners == corners.min(axis=0, initial=np.iinfo(corners.dtype).max)).mean(axis=1)
    longer = boxes[:, 2:].max(axis=1, initial=1).astype(float)
    return np.stack([np.log(areas / max(1.0, areas.sum())), np.log(longer**2 / areas), contact], axis=1)


def columns(
    nodes: np.ndarray, areas: Int[np.ndarray, " S"], boxes: Int[np.ndarray, "S 4"]
) -> dict[str, Float[np.ndarray, " S"]]:
    """All that is known of an image's segments: the features of their nodes as shares, and GEOMETRY."""
    found = {name: nodes[name] / WHOLE for name in FEATURES}
    found["log_compactness"] = np.log(np.maximum(nodes["compactness"], 1) / WHOLE)
    return found | dict(zip(GEOMETRY, geometry(areas, boxes).T, strict=True))


def prior(nodes: np.ndarray, areas: Int[np.ndarray, " S"], boxes: Int[np.ndarray, "S 4"]) -> Float[np.ndarray, " S"]:
    """The IoU that segments of a tree are expected to have with some object, in [0, 1], before anyone calibrates it.

    A logistic regression on what is known of the nodes and on `geometry`, fitted to generated scenes: what it gives on
    photos is good for ranking, not as an IoU. 0 for the only segment of an image, which tells nothing apart.

    nodes: `tree.LEAF` [S], of all segments of an image. areas, boxes: see `geometry`.
    """
    if len(nodes) < 2:
        return np.zeros(len(nodes))
    known = columns(nodes, areas, boxes)
    linear = CONSTANT + sum(weight * known[name] for name, weight in PRIOR.items())
    return 1 / (1 + np.exp(-linear))
