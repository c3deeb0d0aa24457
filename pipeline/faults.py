"""What tests and benches put in the place of a model: a segmenter of a set speed whose labels anyone can check."""

import time
from collections.abc import Sequence

import numpy as np

from diffseg.types import Segment, Segmentation


class FakeSegmenter:
    """Two segments an image, dark and bright, at a set speed. seconds: of labelling, an image."""

    def __init__(self, seconds: float = 0.0, batch_size: int = 4) -> None:
        self.seconds, self.batch_size = seconds, batch_size

    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label by brightness alone."""
        if self.seconds:
            time.sleep(self.seconds * len(images))
        return [by_brightness(image) for image in images]


def by_brightness(image: np.ndarray) -> Segmentation:
    """The labels FakeSegmenter gives: ids in order of the first pixel of each half of the grey scale."""
    bright = image.mean(-1) >= 128
    ids, first, label_map = np.unique(bright, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    label_map = order[label_map.reshape(bright.shape)].astype(np.int32)
    segments = []
    for number in range(len(ids)):
        rows, columns = np.nonzero(label_map == number)
        box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        segments.append(Segment(number, len(rows), box, 1.0))
    return Segmentation(label_map, tuple(segments), 1.0)
