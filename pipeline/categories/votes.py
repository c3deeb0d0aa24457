"""Votes of boxes on segments: what a detector has found in an image says what its segments are.

Letters: N boxes, S segments, W words.
"""

import numpy as np
from scipy import ndimage

from diffseg.types import Float, Int


def votes(
    label_map: Int[np.ndarray, "H W"], boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N W"]
) -> Float[np.ndarray, "S W"]:
    """The vote of the best box for each word on each segment, in [0, 1]; 0 where no box has a pixel of the segment.

    A box votes by its score for the word, times the geometric mean of two shares: that of the segment which lies in the
    box, and that of the box which the segment fills (together: pixels in both / sqrt(pixels of one x of the other)). So
    a box about the whole image names no small thing in it. A pixel lies in a box with its centre.

    boxes: left, top, right, bottom, as shares of the image that the label map fills whole.
    """
    sides = np.array(label_map.shape[::-1] * 2)
    edges = np.ceil(np.clip(boxes, 0, 1).astype(np.float64) * sides - 0.5).astype(int)
    areas = np.prod(np.maximum(edges[:, 2:] - edges[:, :2], 0), axis=1)
    found = np.zeros((int(label_map.max(initial=-1)) + 1, scores.shape[1]))
    for id_, window in enumerate(ndimage.find_objects(label_map + 1)):
        if window is None:
            continue
        inside = label_map[window] == id_
        counts = np.pad(inside.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # of pixels above and left of each corner
        start, most = np.array([window[1].start, window[0].start] * 2), np.array(inside.shape[::-1] * 2)
        left, top, right, bottom = np.clip(edges - start, 0, most).T
        held = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
        near = (held > 0) & (areas > 0)
        if near.any():
            shares = held[near] / np.sqrt(inside.sum() * areas[near].astype(np.float64))
            found[id_] = (shares[:, None] * scores[near]).max(axis=0)
    return found
