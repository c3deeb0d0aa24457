"""What tests and benches put in the place of a model: a segmenter of a set speed whose labels anyone can check."""

import time
from collections.abc import Sequence

import numpy as np

from diffseg.types import Segment, Segmentation
from pipeline.worker.labeling import Segmenter


class FakeSegmenter(Segmenter):
    """Two segments an image, dark and bright, at a set speed. seconds: an image, making its labels included.

    It sleeps for most of that time, as a processor does while its GPU works.
    """

    def __init__(self, seconds: float = 0.0, batch_size: int = 4) -> None:
        self.seconds, self.batch_size = seconds, batch_size

    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label by brightness alone."""
        due = time.perf_counter() + self.seconds * len(images)
        labels = [by_brightness(image) for image in images]
        time.sleep(max(0.0, due - time.perf_counter()))
        return labels


def by_brightness(image: np.ndarray) -> Segmentation:
    """The labels FakeSegmenter gives: ids in order of the first pixel of each half of the scale of green."""
    bright = image[..., 1] >= 128
    label_map = (bright != bright[0, 0]).astype(np.int32)
    segments = []
    for number in range(1 + int(label_map.any())):
        member = label_map == number
        rows, columns = np.flatnonzero(member.any(1)), np.flatnonzero(member.any(0))
        box = (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        segments.append(Segment(number, int(np.count_nonzero(member)), box, 1.0))
    return Segmentation(label_map, tuple(segments), 1.0)
