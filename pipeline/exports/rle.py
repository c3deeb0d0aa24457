"""Run-length encoding of masks: COCO's compressed run lengths, and masks from what COCO has for them.

Letters: K regions of a label map with ids 0..K-1.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from diffseg.types import Bool, Int
from pipeline.errors import ConfigError

COUNTS = re.compile(r"(?:[P-o]{0,6}[0-O])+")  # compressed: five bits a letter, the last of a number without the sixth


def encode(regions: Int[np.ndarray, "H W"]) -> Iterator[tuple[dict[str, Any], int]]:
    """For each id from 0 on the compressed run lengths of its mask, and its area in pixels.

    All masks come from one pass over the map: its runs, column by column as COCO counts them, are sorted by id.
    """
    height, width = regions.shape
    flat = regions.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    ids = flat[starts]
    order = np.argsort(ids, kind="stable")
    ends = np.searchsorted(ids[order], np.arange(int(flat.max()) + 2))
    for first, last in pairwise(ends):
        runs = order[first:last]
        begin, length = starts[runs], lengths[runs]
        counts = np.empty(2 * len(runs) + 1, np.int64)  # pixels outside, inside, outside, ...
        counts[0:-1:2] = np.diff(begin, prepend=0)
        counts[2:-1:2] -= length[:-1]
        counts[1::2] = length
        counts[-1] = flat.size - (begin[-1] + length[-1]) if len(runs) else flat.size
        yield _compressed(counts, height, width), int(length.sum())


def decode(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask of COCO's polygons or run lengths, checked here: others would damage the memory of pycocotools.

    Raises ValueError where these are none, or of another size; ArithmeticError, TypeError or LookupError for the rest.
    """
    height, width = size
    if isinstance(segmentation, list):
        found = [[float(x) for x in each] for each in segmentation]
        inside = all(-1 <= x <= max(size) + 1 for each in found for x in each)
        if not (found and inside and all(len(each) >= 6 and len(each) % 2 == 0 for each in found)):
            raise ValueError("no polygons inside the image")
        return np.asarray(_codec().decode(_codec().merge(_codec().frPyObjects(found, height, width))), bool)
    text = segmentation["counts"]
    counts = np.array([*_counts(text)] if isinstance(text, str) else text, np.int64)
    sound = ((counts >= 0) & (counts <= height * width)).all() and counts.sum() == height * width
    if tuple(segmentation["size"]) != size or not sound:
        raise ValueError(f"run lengths of another image than {width} x {height}")
    return np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(width, height).T


def _counts(compressed: str) -> Iterator[int]:
    """Five bits a letter, the lowest first; from the fourth number on differences to the last but one."""
    if not COUNTS.fullmatch(compressed):
        raise ValueError("no run lengths")
    before = [0, 0]
    for at, number in enumerate(re.findall("[P-o]*[0-O]", compressed)):
        bits = [ord(letter) - 48 & 31 for letter in number]
        value = sum(each << 5 * place for place, each in enumerate(bits)) - (bits[-1] >> 4 << 5 * len(bits))
        before = [before[1], value + before[0] * (at > 2)]
        yield before[1]


def _compressed(counts: Int[np.ndarray, " R"], height: int, width: int) -> dict[str, Any]:
    trimmed = counts.tolist() if counts[-1] else counts[:-1].tolist()
    rle = _codec().frPyObjects({"counts": trimmed, "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


@cache
def _codec() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError(
            "this format needs pycocotools, which is not installed: pip install 'diffseg[export]'"
        ) from error
    return mask
