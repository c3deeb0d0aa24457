"""The model in memory: pixels in, attention maps out.

Only the UNet and the encoder of the VAE are kept; the embedding of the empty prompt is computed once, then the text
encoders are dropped. This module knows no image files, no segments and no runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.config import ResolvedConfig, SegmentConfig
from diffseg.models.attention import AttentionMaps, cells_of
from diffseg.models.device import Device, image_bytes, images_that_fit, placed
from diffseg.models.fetch import fetch
from diffseg.models.files import ModelFiles
from diffseg.models.recognise import named
from diffseg.models.specs import BackendSpec
from diffseg.models.unet.capture import WordReader, capture_attention, cut_after_last_attention, rehearse
from diffseg.models.unet.loading import read_part, read_prompt
from diffseg.models.unet.recognise import recognise_unet
from diffseg.types import Float

# of an encoder's widest activation, at full resolution, that live at once while it runs
ENCODER_COPIES = {"AutoencoderKL": 5, "AutoencoderTiny": 3.2}
UNET_COPIES = 28  # of the activation at its finest attention, beside the maps
BETAS, STEPS = (0.00085, 0.012), 1000  # of the noise at training
NOISE_SEED = 42  # as published


@dataclass(frozen=True)
class Parts:
    """The parts of a `Backend`.

    encoder: the VAE without its decoder.
    hidden: the empty prompt, and those that list the words of the configuration, float32 [1 + K, 77, context].
    pooled: the empty prompt as one vector, float32 [1, channels], where the family adds it. places: of the words.
    """

    unet: nn.Module
    encoder: nn.Module
    hidden: Tensor
    pooled: Tensor | None = None
    places: Sequence[Sequence[range]] = ()


class Backend:
    """One model, ready for one configuration."""

    def __init__(
        self, files: ModelFiles, spec: BackendSpec, config: ResolvedConfig, parts: Parts, device: Device
    ) -> None:
        """Take over the parts of a model; parts: of any precision, on any device, the UNet whole."""
        self.files = files
        self.spec = spec
        self.config = config
        where, dtype = placed(config, device)
        cut_after_last_attention(parts.unet)
        self.unet = parts.unet.to(where, dtype)
        self.encoder = parts.encoder.to(where, torch.float32 if spec.vae_upcast and dtype == torch.float16 else dtype)
        self.hidden, listed = parts.hidden.to(where, dtype).tensor_split([1])
        self.words = WordReader(self.unet, listed, parts.places) if parts.places else None
        self.pooled = None if parts.pooled is None else parts.pooled.to(where, dtype)
        if where.type == "cuda":  # convolutions of half precision want the channels innermost there
            for part in (self.unet, self.encoder):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            rehearse(self.unet, where, dtype)
        if self.config.compile:
            self.unet.compile(dynamic=True)
            self.encoder.get_submodule("encoder").compile(dynamic=True)

    @classmethod
    def load(cls, model: str | ModelFiles, config: SegmentConfig | None = None, device: Device = None) -> "Backend":
        """Fetch, recognise and load a model; see `diffseg.models.load.load`."""
        files = model if isinstance(model, ModelFiles) else fetch(model)
        with named(files):
            spec = recognise_unet(files)
            resolved = (config or SegmentConfig()).resolve(spec)
            prompts = read_prompt(files.folder, spec.added_conditions, resolved.words or ())
            parts = Parts(read_part(files.folder, "unet"), read_part(files.folder, "vae"), *prompts)
        return cls(files, spec, resolved, parts, device)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.unet.parameters()).device

    @torch.inference_mode()
    def attend(self, pixels: Float[Tensor, "B 3 H W"], *, features: bool = False) -> AttentionMaps:
        """One pass over a batch of one size, pixels in [-1, 1], sides multiples of 64.

        features: give the output of the encoder's last self-attention too, and attention to the words it was given.
        Raises ValueError for other sides.
        """
        cells_of(pixels, self.spec.unit)
        latents = self.latents(pixels)
        if self.config.mode == "quality":
            latents = self.noised(latents)
        latent, words = (latents.shape[2], latents.shape[3]), self.words if features else None
        if words:
            words.begin(latent)
        with capture_attention(self.unet, features) as store:
            self.unet(latents, self.config.timestep, **self.conditions(pixels))
        return replace(store.maps(latent), words=words.end() if words else None)

    def latents(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c h w"]:
        """The mean of the encoder's posterior, normed and scaled as the UNet expects; no noise is added."""
        encoder: Any = self.encoder
        dtype: Any = self.unet.dtype
        encoded = encoder.encode(pixels.to(self.device, encoder.dtype))
        latents: Tensor = encoded.latents if "latents" in encoded else encoded.latent_dist.mean
        if self.spec.vae_mean:
            mean, std = latents.new_tensor([self.spec.vae_mean, self.spec.vae_std])[..., None, None]
            latents = (latents - mean) / std
        return (latents * self.spec.vae_scaling).to(dtype)

    def noised(self, latents: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """Latents at the configured time, with one seeded noise for all images (DiffCut, arXiv 2406.02842, section 4).

        The schedule is that which every Stable Diffusion was trained with: "scaled linear", a thousand steps.
        """
        betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, STEPS, dtype=torch.float64).square()
        kept = (1 - betas).cumprod(0)[self.config.timestep].item()
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(NOISE_SEED))
        noised: Tensor = kept**0.5 * latents + (1 - kept) ** 0.5 * noise.to(latents)
        return noised

    def conditions(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Any]:
        """The UNet's arguments beside latent and time: the empty prompt, and for SDXL the image sizes."""
        images, _, height, width = pixels.shape
        hidden = self.hidden.expand(images, -1, -1)
        if self.pooled is None:
            return {"encoder_hidden_states": hidden}
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=hidden.dtype, device=self.device)
        added = {"text_embeds": self.pooled.expand(images, -1), "time_ids": sizes.expand(images, -1)}
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}

    def steps(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Callable[[], Any]]:
        """What a pass is made of, to be timed: the encoder, the UNet, and the UNet with capture."""
        latents, conditions = self.latents(pixels), self.conditions(pixels)

        def plain() -> None:
            self.unet(latents, self.config.timestep, **conditions)

        def captured() -> None:
            with capture_attention(self.unet):
                plain()

        return {"vae": lambda: self.latents(pixels), "unet": plain, "capture": captured}

    def captured(self) -> list[tuple[int, int]]:
        """Channels of each level's attention and the number of its layers, finest first."""
        unet: Any = self.unet
        channels = [int(width) for width in unet.config.block_out_channels]
        layers = [layers for _, layers in self.spec.levels]
        return list(zip(channels[-len(layers) :], layers, strict=True))

    def batch_size(self) -> int:
        """Images of the model's own size that fit in the free memory of the device; 1 on a processor."""
        return images_that_fit(self.device, self.config, self.image_bytes())

    def image_bytes(self) -> int:
        """Memory for each image of a batch; see `device.image_bytes`."""
        encoder: Any = self.encoder
        unet: Any = self.unet
        side = self.config.image_size
        scale = (side / self.spec.image_size) ** 2
        cells = [int(level**2 * scale) for level, _ in self.spec.levels]
        maps = sum(torch.float32.itemsize * n**2 for n in cells)
        widest = encoder.config.block_out_channels[0] * side**2 * encoder.dtype.itemsize
        encoding = int(ENCODER_COPIES[type(encoder).__name__] * widest)
        attending = maps + UNET_COPIES * self.captured()[0][0] * cells[0] * unet.dtype.itemsize
        attending += (self.words.numbers if self.words else 0) * cells[0] * torch.float32.itemsize
        return image_bytes(self.config, cells[0], cells[0], maps, max(encoding, attending))
