"""A model loaded, whatever family it is of. Importing this needs no torch."""

from functools import lru_cache
from typing import TYPE_CHECKING

from diffseg.config import SegmentConfig
from diffseg.models.fetch import fetch
from diffseg.models.files import ModelFiles, listing_of
from diffseg.models.recognise import is_vit, named, recognise
from diffseg.models.specs import VITS, ViTSpec

if TYPE_CHECKING:
    from diffseg.models.device import Device
    from diffseg.models.unet.backend import Backend as UNet
    from diffseg.models.vit.backend import Backend as ViT

    Backend = UNet | ViT


def load(model: str, config: SegmentConfig | None = None, device: "Device" = None) -> "Backend":
    """Fetch, recognise and load a model.

    model: a short name, hub id, folder or fsspec URL.
    device: a GPU where there is one by default.
    Raises ValueError where there is no usable model of that name, OSError where it cannot be reached.
    """
    files = fetch(model)
    if is_vit(listing_of(files.folder)):
        from diffseg.models.vit.backend import Backend as ViT

        return ViT.load(files, config, device)
    from diffseg.models.unet.backend import Backend as UNet

    return UNet.load(files, config, device)


@lru_cache(maxsize=8)
def check(files: ModelFiles, words: tuple[str, ...] = ()) -> None:
    """Check that a model can be loaded, without reading a weight: every part is compared with the headers of its files.

    words: that it is to read. Raises ValueError as `load` would.
    """
    from diffseg.models.unet.loading import check_unet
    from diffseg.models.vit.loading import check_vit

    with named(files):
        spec = recognise(files)
        check_vit(files) if isinstance(spec, ViTSpec) else check_unet(files, spec, words)


def random_backend(name: str, config: SegmentConfig | None = None, device: "Device" = None) -> "Backend":
    """A named model with random weights, in memory only: to measure its cost without a download.

    Raises ValueError for a name that is not in the table.
    """
    if name in VITS:
        from diffseg.models.vit import random_weights as vit

        return vit.random_backend(name, config, device)
    from diffseg.models.unet import random_weights as unet

    return unet.random_backend(name, config, device)
