"""Samples that make a segmenter raise, crash, hang or take all memory."""

import ctypes
import io
import os
import signal
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffseg.types import Segmentation
from pipeline.worker.labeling import Segmenter

MARKS = {  # the one colour of a marked image, by what it does to the process that labels it
    "raise": (255, 0, 1),
    "segfault": (255, 0, 2),
    "hang": (255, 0, 3),
    "memory": (255, 0, 4),
}
STEP_BYTES = 64 << 20  # of memory, taken at a time


class Vulnerable(Segmenter):
    """A segmenter that does what marked images tell it to. most_bytes: taken by `memory` before the kill."""

    def __init__(self, segmenter: Segmenter, most_bytes: int = 1 << 30) -> None:
        self._segmenter, self._most_bytes = segmenter, most_bytes
        self.batch_size = segmenter.batch_size

    def segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label a batch, if there is no mark in it."""
        for image in images:
            match mark_of(image):
                case "raise":
                    raise RuntimeError("a sample marked to raise")
                case "segfault":
                    ctypes.string_at(0)
                case "hang":
                    threading.Event().wait()
                case "memory":
                    exhaust_memory(self._most_bytes)
        return self._segmenter.segment(images)


def marked(what: str, size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG that makes a Vulnerable segmenter do one of MARKS. size: width and height."""
    if what not in MARKS:
        raise ValueError(f"a sample can be marked with {', '.join(MARKS)}, got {what!r}")
    buffer = io.BytesIO()
    Image.new("RGB", size, MARKS[what]).save(buffer, "PNG")
    return buffer.getvalue()


def mark_of(image: np.ndarray) -> str | None:
    """What an image was marked with; None for one that was not."""
    first = tuple(image[0, 0].tolist())
    mark = next((name for name, colour in MARKS.items() if colour == first), None)
    return mark if mark and (image == image[0, 0]).all() else None


def exhaust_memory(most_bytes: int) -> None:
    """Take memory until there is none, or `most_bytes` are taken; then be killed as the kernel kills such a process.

    The bound leaves memory to the other processes of the machine.
    """
    taken: list[bytes] = []
    while len(taken) * STEP_BYTES < most_bytes:
        taken.append(b"\x01" * STEP_BYTES)
    os.kill(os.getpid(), signal.SIGKILL)
