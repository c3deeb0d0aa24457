"""A vision transformer in memory: pixels in, attention maps out."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.config import ResolvedConfig, SegmentConfig
from diffseg.models.attention import AttentionMaps, cells_of
from diffseg.models.device import Device, image_bytes, images_that_fit, placed
from diffseg.models.fetch import fetch
from diffseg.models.files import ModelFiles
from diffseg.models.recognise import named
from diffseg.models.specs import ViTSpec
from diffseg.models.vit.capture import attend_through_us, capture_attention
from diffseg.models.vit.loading import read_vit, renew_positions
from diffseg.models.vit.recognise import PREPROCESSOR, recognise_vit
from diffseg.types import Float

TOKENS_COPIES = 11.4  # of the hidden states, that live at once while a layer runs

logger = logging.getLogger(__name__)


class Backend:
    """One vision transformer, ready for one configuration."""

    def __init__(
        self, files: ModelFiles, spec: ViTSpec, config: ResolvedConfig, model: nn.Module, device: Device
    ) -> None:
        """Take over a model of any precision, on any device."""
        self.files = files
        self.spec = spec
        self.config = config
        where, dtype = placed(config, device)
        self.model: Any = model.to(where, dtype)
        renew_positions(self.model)
        self.model.to(where)
        attend_through_us(self.model)
        shape = (1, 3, 1, 1)
        # of pixels in [-1, 1]: (x + 1) * 127.5 * rescale - mean, over the deviation
        scale = 127.5 * spec.rescale / torch.tensor(spec.std, dtype=torch.float64)
        self._scale = scale.view(shape).to(where, torch.float32)
        shift = (127.5 * spec.rescale - torch.tensor(spec.mean, dtype=torch.float64)) / torch.tensor(spec.std)
        self._shift = shift.view(shape).to(where, torch.float32)
        if where.type == "cuda":
            side = 4 * spec.unit
            self.attend(torch.zeros(1, 3, side, side))  # compiles the kernels before the first images
        if config.compile:
            self.model.compile(dynamic=True)

    @classmethod
    def load(cls, model: str | ModelFiles, config: SegmentConfig | None = None, device: Device = None) -> "Backend":
        """Fetch, recognise and load a model; see `diffseg.models.load.load`."""
        files = model if isinstance(model, ModelFiles) else fetch(model)
        with named(files):
            spec = recognise_vit(files)
            if not (files.folder / PREPROCESSOR).is_file():
                logger.warning(
                    "%s has no %s: its input is normed by the published mean %s and deviation %s",
                    *(files.name, PREPROCESSOR, spec.mean, spec.std),
                )
            resolved = (config or SegmentConfig()).resolve(spec)
            return cls(files, spec, resolved, read_vit(files.folder), device)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        where: torch.device = self.model.device
        return where

    @torch.inference_mode()
    def attend(self, pixels: Float[Tensor, "B 3 H W"], *, features: bool = False) -> AttentionMaps:
        """One pass over a batch of one size, pixels in [-1, 1], sides multiples of the patch.

        features: give the last hidden state of every patch too.
        Raises ValueError for other sides.
        """
        grid = cells_of(pixels, self.spec.unit)
        with capture_attention(self.model, self.spec.layers, features=features) as store:
            tokens = self.tokens(self.normed(pixels))
        count = grid[0] * grid[1]
        vectors = tokens[:, -count:] if features else None
        return AttentionMaps((store.of_patches(count),), grid, vectors, grid if features else None)

    def normed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [-1, 1] as the model was trained on them, in its precision."""
        given = pixels.to(self.device, torch.float32)
        return torch.addcmul(self._shift, given, self._scale).to(self.model.dtype)

    def tokens(self, given: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B t c"]:
        """The last hidden state of every token: class, registers, patches."""
        hidden: Tensor = self.model(pixel_values=given).last_hidden_state
        return hidden

    def steps(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Callable[[], Any]]:
        """What a pass is made of, to be timed: the model, and the model with capture."""
        return {"vit": lambda: self.tokens(self.normed(pixels)), "capture": lambda: self.attend(pixels)}

    def captured(self) -> list[tuple[int, int]]:
        """Channels of the one level's attention and the number of its layers."""
        return [(self.spec.width, self.spec.layers)]

    def batch_size(self) -> int:
        """Images of the model's own size that fit in the free memory of the device; 1 on a processor."""
        return images_that_fit(self.device, self.config, self.image_bytes())

    def image_bytes(self) -> int:
        """Memory for each image of a batch; see `device.image_bytes`."""
        side, size = self.config.image_size, self.model.dtype.itemsize
        cells = (side // self.spec.unit) ** 2
        tokens = cells + 1 + self.spec.registers
        maps, hidden = torch.float32.itemsize * tokens**2, tokens * self.spec.width * size
        pixels = 3 * side**2 * (torch.float32.itemsize + size)
        passing = pixels + max(int(TOKENS_COPIES * hidden) + maps, 2 * maps + hidden)
        return image_bytes(self.config, cells, cells, maps, passing)
