"""Training of the embedded model: generated scenes in, a Stable Diffusion folder out.

Two losses at once. On noisy latents the model learns to predict the noise, as every diffusion model does. On clean and
noisy ones the grouping loss (`infra.embedded.loss`) brings its self-attention closer to the scenes' true masks.

Everything random follows from the seed and the number of the step, so that a training that was stopped and resumed
gives the weights of one that was not. Letters: B scenes of a batch, K segments, c latent channels, h x w latent cells.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot, pad
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffseg.models.unet.random_weights import CONTEXT
from diffseg.types import Float
from infra.embedded.architecture import DEFAULTS, LAYOUT
from infra.embedded.checkpoints import SCHEDULER, Checkpoint, build
from infra.embedded.encoder import AUTOENCODER, set_by_hand
from infra.embedded.loss import AnchorAttention, AnchorProcessor, draw_anchors, grouping_loss
from infra.scenes.scene import Scene, draw_scene

TRAINING, CALIBRATION = 1, 2  # seed spaces of scenes, apart from the one that is reported on
CALIBRATION_SCENES = 64
CELL = 8  # pixels a latent cell
LEGIBLE = 600  # beyond this timestep a picture is noise, and the grouping loss does not apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights: two trainings with one recipe end in one model.

    size: side of the scenes in pixels. fresh: new scenes a step. pool: scenes that batches are drawn from.
    clean: share of a batch that is seen without noise at the model's own timestep, as labelling sees it.
    """

    steps: int
    size: int = 256
    seed: int = 0
    batch: int = 6
    learning_rate: float = 1e-3
    fresh: int = 1
    pool: int = 512
    clean: float = 0.625
    denoising: float = 0.3  # weight of the noise loss beside the grouping loss
    anchors: int = 128
    averaging: float = 0.998  # of the weights that are kept in the end
    bfloat16: bool = False  # faster where the processor or GPU has it

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.size < 64 or self.size % 64:
            raise ValueError(f"size must be a positive multiple of 64 pixels, got {self.size}")

    def rate(self, step: int) -> float:
        """Learning rate: warm up, constant, linear decay over the second half."""
        return self.learning_rate * min(1, (step + 1) / 50, max(0.02, 2 * (1 - step / self.steps)))


@dataclass(frozen=True, slots=True)
class TrainingScene:
    """A scene as training holds it: latents [c, h, w] and how much of each cell is of each segment [K, h, w]."""

    latents: Tensor
    membership: Tensor


@dataclass(frozen=True, slots=True)
class Report:
    """The losses of one step."""

    step: int
    noise: float
    grouping: float


class Trainer:
    """A model under training; `run` yields a report after each step."""

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.step = 0
        self.checkpoint = build(LAYOUT, recipe.seed)
        set_by_hand(self.checkpoint.vae, _calibration())
        self.encoder: Any = self.checkpoint.vae.to(self.device)
        unet: Any = self.checkpoint.unet
        self.unet = unet.train().to(self.device, memory_format=torch.channels_last)
        self.average = [weight.detach().clone() for weight in self.unet.parameters()]
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
        self.prompt = empty_prompt(self.checkpoint, LAYOUT.vocabulary).to(self.device)
        self.kept = _noise_schedule().to(self.device)
        self.scenes: dict[int, TrainingScene] = {}
        self.attention: list[AnchorAttention] = []
        recorders = {
            name: AnchorProcessor(self.attention, name) if ".attn1." in name else stock
            for name, stock in self.unet.attn_processors.items()
        }
        self.unet.set_attn_processor(recorders)

    def run(self) -> Iterator[Report]:
        """Train to the last step, yielding after each."""
        while self.step < self.recipe.steps:
            yield self._learn()

    def state(self) -> dict[str, Any]:
        """Everything that a later resume needs."""
        return {
            "step": self.step,
            "unet": self.unet.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as if there had been no interruption."""
        self.step = state["step"]
        self.unet.load_state_dict(state["unet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = [weight.to(self.device) for weight in state["average"]]

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with the UNet of a trained model in place of random weights."""
        self.unet.load_state_dict(weights)
        self.average = [weight.detach().clone() for weight in self.unet.parameters()]

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write the averaged model as a Stable Diffusion folder with its own defaults."""
        trained = build(LAYOUT, self.recipe.seed)
        trained.vae.load_state_dict(self.encoder.state_dict())
        trained.unet.load_state_dict(self.unet.state_dict())
        with torch.no_grad():
            for weight, average in zip(trained.unet.parameters(), self.average, strict=True):
                weight.copy_(average)
        return replace(trained, text_encoders=self.checkpoint.text_encoders).save(folder, dtype, DEFAULTS)

    def _learn(self) -> Report:
        random = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        latents, membership = self._batch(random)
        inputs, noise, times, clean = self._noised(latents, random)
        grid = (latents.shape[2], latents.shape[3])
        anchors = draw_anchors(membership, self.recipe.anchors, random)
        self.attention[:] = [AnchorAttention(grid, anchors.to(self.device))]
        with self._precision():
            guess = self.unet(inputs, times, self.prompt.expand(len(inputs), -1, -1)).sample.float()
        denoising = ((guess - noise).square().mean((1, 2, 3)) * ~clean).sum() / (~clean).sum().clamp_min(1)
        legible = (times < LEGIBLE).float()
        grouped = grouping_loss(self.attention[-1], membership.to(self.device))
        grouped = (grouped * legible).sum() / legible.sum().clamp_min(1)
        self._descend(self.recipe.denoising * denoising + grouped)
        self.step += 1
        return Report(self.step, denoising.item(), grouped.item())

    def _descend(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.recipe.averaging, (2 + self.step) / (21 + self.step))  # young averages forget faster
        get_ema_multi_avg_fn(decay)(self.average, list(self.unet.parameters()), None)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.recipe.bfloat16 else nullcontext()

    def _batch(self, random: torch.Generator) -> tuple[Float[Tensor, "B c h w"], Float[Tensor, "B K h w"]]:
        """A draw from the pool: the last `pool` scenes so far, `fresh` of them new in this step."""
        newest = (self.step + 1) * self.recipe.fresh + self.recipe.batch * 4  # a stock before the first step
        oldest = max(0, newest - self.recipe.pool)
        for number in [number for number in self.scenes if number < oldest]:
            del self.scenes[number]
        drawn = torch.randint(oldest, newest, (self.recipe.batch,), generator=random).tolist()
        for number in drawn:
            if number not in self.scenes:
                self.scenes[number] = self._prepare(number)
        scenes = [self.scenes[number] for number in drawn]
        most = max(len(scene.membership) for scene in scenes)
        padded = [pad(scene.membership, (0, 0, 0, 0, 0, most - len(scene.membership))) for scene in scenes]
        return torch.stack([scene.latents for scene in scenes]), torch.stack(padded)

    @torch.no_grad()
    def _prepare(self, number: int) -> TrainingScene:
        size = (self.recipe.size, self.recipe.size)
        scene = draw_scene(np.random.default_rng([TRAINING, self.recipe.seed, number]), size)
        latents = self.encoder.encode(as_pixels(scene)[None].to(self.device)).latent_dist.mean[0].cpu()
        segments = one_hot(torch.from_numpy(scene.truth).long()).permute(2, 0, 1).float()
        return TrainingScene(latents * AUTOENCODER["scaling_factor"], avg_pool2d(segments, CELL))

    def _noised(self, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs, the noise in them, timesteps, and which scenes are clean: mostly little noise, seldom much."""
        batch = len(latents)
        clean = torch.arange(batch) < round(batch * self.recipe.clean)
        little = torch.randint(10, 400, (batch,), generator=random)
        much = torch.randint(0, 1000, (batch,), generator=random)
        times = torch.where(torch.rand(batch, generator=random) < 0.75, little, much)
        times = torch.where(clean, DEFAULTS["timestep"], times).to(self.device)
        noise = torch.randn(latents.shape, generator=random).to(self.device)
        kept = self.kept[times].view(-1, 1, 1, 1)
        latents, clean = latents.to(self.device), clean.to(self.device)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        inputs = torch.where(clean.view(-1, 1, 1, 1), latents, noisy)
        return inputs.contiguous(memory_format=torch.channels_last), noise, times, clean


def as_pixels(scene: Scene) -> Float[Tensor, "3 H W"]:
    """A scene's picture as the encoder takes it, in [-1, 1]."""
    return torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _calibration() -> Float[Tensor, "B 3 H W"]:
    """Pictures on which the mean and deviation of the latents are measured."""
    randoms = (np.random.default_rng([CALIBRATION, number]) for number in range(CALIBRATION_SCENES))
    return torch.stack([as_pixels(draw_scene(random, (256, 256))) for random in randoms])


@torch.no_grad()
def empty_prompt(checkpoint: Checkpoint, vocabulary: int) -> Float[Tensor, "1 77 context"]:
    """Embed the empty prompt: the last but one token of the vocabulary begins a text, the last ends and pads it."""
    tokens = torch.full((1, CONTEXT), vocabulary - 1)
    tokens[0, 0] = vocabulary - 2
    encoder: Any = checkpoint.text_encoders[0]
    embedding: Tensor = encoder(tokens).last_hidden_state
    return embedding


def _noise_schedule() -> Float[Tensor, " 1000"]:
    """The share of the signal's energy left at every timestep."""
    first, last = SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5
    return (1 - torch.linspace(first, last, SCHEDULER["num_train_timesteps"]) ** 2).cumprod(0)
