"""The model in memory: pixels in, attention maps out.

Only the UNet and the encoder of the VAE stay; the embedding of the empty prompt is computed once and its text encoders
are dropped. Nothing here knows of files of images, of segments or of runs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.backends import BackendSpec, read_encoder, read_prompt, read_unet, recognise
from diffseg.capture import AttentionMaps, capture_attention
from diffseg.config import SegmentConfig
from diffseg.types import Float
from diffseg.weights import ModelFiles, fetch


@dataclass(frozen=True)
class Prompt:
    """The empty prompt, as the text encoders of a model see it.

    hidden: float32 [1, 77, context].
    pooled: float32 [1, channels], where the family adds it.
    """

    hidden: Tensor
    pooled: Tensor | None

    def to(self, like: Tensor) -> "Prompt":
        """The same on the device and in the precision of another tensor."""
        return Prompt(self.hidden.to(like), None if self.pooled is None else self.pooled.to(like))


class Backend:
    """One model, loaded for one configuration.

    config: resolved, nothing in it left open.
    """

    def __init__(
        self,
        spec: BackendSpec,
        config: SegmentConfig,
        files: ModelFiles,
        unet: nn.Module,
        encoder: nn.Module,
        prompt: Prompt,
    ) -> None:
        self.spec = spec
        self.config = config
        self.files = files
        self.prompt = prompt.to(next(unet.parameters()))
        self.unet = unet
        self.encoder = encoder

    @classmethod
    def load(
        cls, model: str | ModelFiles, config: SegmentConfig | None = None, device: torch.device | str | None = None
    ) -> "Backend":
        """Fetch, recognise and load a model.

        device: a GPU where there is one by default.
        Raises ValueError where there is no usable model of that name, OSError where it cannot be reached.
        """
        files = model if isinstance(model, ModelFiles) else fetch(model)
        spec = recognise(files)
        resolved = (config or SegmentConfig()).resolve(spec)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = getattr(torch, str(resolved.dtype))
        unet = read_unet(files.folder).to(where, dtype)
        encoder = read_encoder(files.folder).to(
            where, torch.float32 if spec.vae_upcast and dtype == torch.float16 else dtype
        )
        return cls(spec, resolved, files, unet, encoder, Prompt(*read_prompt(files.folder, spec.added_conditions)))

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.unet.parameters()).device

    @torch.inference_mode()
    def attend(self, pixels: Float[Tensor, "B 3 H W"]) -> AttentionMaps:
        """One pass over a batch of one size, pixels in [-1, 1], sides multiples of 64."""
        latents = self.latents(pixels)
        with capture_attention(self.unet) as store:
            self.unet(latents, self.config.timestep, **self.conditions(pixels))
        return store.maps((latents.shape[2], latents.shape[3]))

    def latents(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c h w"]:
        """The mean of the encoder's posterior, scaled as the UNet expects; no noise is added."""
        encoder: Any = self.encoder
        posterior = encoder.encode(pixels.to(self.device, encoder.dtype)).latent_dist
        return (posterior.mean * self.spec.vae_scaling).to(self.unet.dtype)

    def conditions(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Any]:
        """The UNet's arguments beside latent and time: the empty prompt, and for SDXL what it was told of sizes."""
        images, _, height, width = pixels.shape
        hidden = self.prompt.hidden.expand(images, -1, -1)
        if self.prompt.pooled is None:
            return {"encoder_hidden_states": hidden}
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=hidden.dtype, device=self.device)
        added = {"text_embeds": self.prompt.pooled.expand(images, -1), "time_ids": sizes.expand(images, -1)}
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}
