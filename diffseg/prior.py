"""What is known of a segment by its shape, beside its attention: columns that scores are made from.

No torch here: readers of finished labels score segments too. Letters: S segments of one image.
"""

import numpy as np

from diffseg.annotations import Float, Int

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


def prior(nodes: np.ndarray) -> Float[np.ndarray, " S"]:
    """How far segments can be trusted, in [0, 1]: margin times stability.

    nodes: `tree.LEAF` [S], what is known of the segments' nodes.
    """
    return nodes["margin"] * nodes["stability"].astype(np.float64) / 255**2
