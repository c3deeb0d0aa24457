"""What brings images to a device: work that any thread may do ahead, then uploads and labels beside the model's passes.

Letters: B images of a batch, h x w pixels of the model's input, H x W pixels of a label map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffseg.config import ResolvedConfig
from diffseg.method.geometry import PLACES, Frame, crop_of, frame, normed, to_input, to_output
from diffseg.types import Float, UInt8

Pixels = UInt8[Tensor, "h w 3"] | Float[Tensor, "h w 3"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image at the sizes that it is labelled at; the image itself is not needed any more.

    pixels: of the model's input. picture: at the size of the label map, None where nothing asks for it. crops: of the
    model's input each, by PLACES.
    """

    frame: Frame
    pixels: Pixels
    picture: UInt8[np.ndarray, "H W 3"] | None
    crops: tuple[Pixels, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model's input: images that share it share a pass."""
        return tuple(self.pixels.shape)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        picture = 0 if self.picture is None else self.picture.nbytes
        return sum(each.nbytes for each in (self.pixels, *self.crops)) + picture


def prepare(image: UInt8[np.ndarray, "_ _ 3"], config: ResolvedConfig) -> Prepared:
    """All of an image's work that needs no device; any thread may do it."""
    planned = frame(image.shape[:2], config)
    crops = tuple(to_input(image, crop_of(planned, place)) for place in PLACES if config.crop_layers)
    picture = to_output(image, planned) if config.edges or config.tree else None
    return Prepared(planned, to_input(image, planned), picture, crops)


class Feed:
    """Streams of a device beside the one that the model runs on. On a processor there are none: all runs in order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._uploads = torch.cuda.Stream(device)
            self._labels = torch.cuda.Stream(device, priority=-1)  # a batch's labels go before the next one's pass

    def upload(self, images: Sequence[Pixels], most: int) -> Float[Tensor, "B 3 h w"]:
        """Pixels of a batch, in [-1, 1].

        On a GPU the batch is filled up with its last image to a power of two, `most` at most: a pass of one image, or
        of ever other numbers, would have kernels compiled and planned for it alone.
        """
        if self._device.type != "cuda":
            return normed(torch.stack(list(images)))
        count = min(max(2, 1 << (len(images) - 1).bit_length()), max(most, len(images)))
        host = torch.empty((count, *images[0].shape), dtype=images[0].dtype, pin_memory=True)
        torch.stack([*images, *[images[-1]] * (count - len(images))], out=host)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            moved = host.to(self._device, non_blocking=True)
        current.wait_stream(self._uploads)
        moved.record_stream(current)
        return normed(moved)

    def mark(self) -> torch.cuda.Event | None:
        """This point, after all that the device was given so far; None on a processor."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    @contextmanager
    def beside(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """What the block asks of the device follows `mark`, and not what the model was given since."""
        if mark is None:
            yield
            return
        self._labels.wait_event(mark)
        with torch.cuda.stream(self._labels):
            yield
