"""What is known about each model, as data. No torch: a command that only plans reads it too."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffseg.config import Dtype

OVERRIDES = (
    "diffseg.json"  # in a model's folder: its own thresholds, cut, image_size, dtype; timestep, or layers of a ViT
)
CONFIG = "config.json"  # of a vision transformer; the parts of a diffusion model have one each in their folders


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """One model as data; what it decides about labels are `config.ModelDefaults`.

    levels: (side of the attention grid at `image_size`, self-attention layers on it), finest first.
    """

    name: str
    repo: str | None
    licence: str  # as the hub names it
    image_size: int = 512  # pixels it was trained at
    levels: tuple[tuple[int, int], ...] = ((64, 5), (32, 5), (16, 5), (8, 1))
    context: int = 768  # width of the text embedding
    added_conditions: bool = False  # pooled text and six sizes beside the prompt, as SDXL has it
    vae_scaling: float = 0.18215
    vae_mean: tuple[float, ...] = ()  # of the latents, a channel or for all; none: they are scaled alone
    vae_std: tuple[float, ...] = ()
    vae_upcast: bool = False  # the encoder overflows float16 and then runs in float32
    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1)  # published for SD 1.4 on COCO-Stuff; not tuned for the others
    cut: float = 1.1  # not tuned either
    timestep: int = 300
    unit: int = 64  # pixels: eight a latent cell, and three halvings of the latent inside the UNet
    dtype: Dtype = "bfloat16"  # its range fits every family; on a processor name float32, it has no fast bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTSpec:
    """One vision transformer as data; what it decides about labels are `config.ModelDefaults`.

    layers: the last self-attention layers, whose mean is taken: half of them, the early ones see textures.
    mean, std: of its input, for pixels 0..255 times `rescale`.
    """

    name: str
    repo: str | None
    licence: str
    patch: int = 14  # pixels, the side of a cell
    width: int = 384  # channels of a token
    depth: int = 12  # layers there are
    registers: int = 0  # tokens beside the class token and the patches
    layers: int = 6
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # published for both families, of ImageNet's training photos
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    rescale: float = 1 / 255
    image_size: int = 518  # layers, size and thresholds: chosen for dinov2-small on 50 photos of BSDS500
    thresholds: tuple[float, ...] = (0.3, 0.3, 0.3)
    cut: float = 0.45
    timestep: None = None
    dtype: Dtype = "float32"  # every machine is fast enough for it, and labels are the same on all

    @property
    def unit(self) -> int:
        """The sides of the input are multiples of the patch."""
        return self.patch


Spec = BackendSpec | ViTSpec
SIDE = 37  # patches a side of the square that a ViT sees: what DINOv2 was trained at last

SD1_4 = BackendSpec(name="sd1.4", repo="CompVis/stable-diffusion-v1-4", licence="creativeml-openrail-m")
SD2_BASE = replace(
    SD1_4, name="sd2.1-base", repo="stabilityai/stable-diffusion-2-1-base", licence="openrail++", context=1024
)
SDXL = BackendSpec(
    name="sdxl",
    repo="stabilityai/stable-diffusion-xl-base-1.0",
    licence="openrail++",
    image_size=1024,
    levels=((64, 10), (32, 60)),
    context=2048,
    added_conditions=True,
    vae_scaling=0.13025,
    vae_upcast=True,
)
BACKENDS: Mapping[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        SD1_4,
        replace(SD1_4, name="sd1.5", repo="stable-diffusion-v1-5/stable-diffusion-v1-5"),
        SD2_BASE,
        replace(
            SD2_BASE,
            name="sd2.1",
            repo="stabilityai/stable-diffusion-2-1",
            image_size=768,
            levels=((96, 5), (48, 5), (24, 5), (12, 1)),
        ),
        replace(SD2_BASE, name="sd-turbo", repo="stabilityai/sd-turbo", licence="stabilityai-community"),
        SDXL,
        replace(SDXL, name="ssd-1b", repo="segmind/SSD-1B", licence="apache-2.0", levels=((64, 8), (32, 26))),
        BackendSpec(  # shipped in the package; its folder's diffseg.json has the last word
            name="tiny",
            repo=None,
            licence="apache-2.0",
            image_size=256,
            levels=((32, 3), (16, 3), (8, 3), (4, 1)),
            context=64,
            thresholds=(0.3, 0.3, 0.3),
            cut=0.4,
            timestep=50,
            dtype="float32",
        ),
    )
}
DINOV2 = ViTSpec(name="dinov2-small", repo="facebook/dinov2-small", licence="apache-2.0")
DINOV3 = ViTSpec(
    name="dinov3-small",
    repo="facebook/dinov3-vits16-pretrain-lvd1689m",
    licence="dinov3-license",
    patch=16,
    image_size=SIDE * 16,
    registers=4,
)
VITS: Mapping[str, ViTSpec] = {
    spec.name: spec
    for spec in (
        DINOV2,
        replace(DINOV2, name="dinov2-base", repo="facebook/dinov2-base", width=768),
        replace(DINOV2, name="dinov2-large", repo="facebook/dinov2-large", width=1024, depth=24, layers=12),
        replace(DINOV2, name="dinov2-giant", repo="facebook/dinov2-giant", width=1536, depth=40, layers=20),
        DINOV3,
        replace(DINOV3, name="dinov3-base", repo="facebook/dinov3-vitb16-pretrain-lvd1689m", width=768),
        replace(
            DINOV3,
            name="dinov3-large",
            repo="facebook/dinov3-vitl16-pretrain-lvd1689m",
            width=1024,
            depth=24,
            layers=12,
        ),
    )
}
MODELS: Mapping[str, Spec] = {**BACKENDS, **VITS}


def licence_of(model: str) -> str:
    """The licence of a model by its name or hub id, whatever the revision; `unknown` for any other."""
    repo = model.partition("@")[0]
    return next((spec.licence for spec in MODELS.values() if spec.name == model or spec.repo == repo), "unknown")
