"""The palette of `diffseg.draw`, computed: `python infra/docs/palette.py` prints its colours.

Each colour is as far as possible from all before it, for the kind of colour vision that distinguishes them least.
"""

import sys

import numpy as np

from diffseg.draw import IGNORED, PALETTE_SIZE
from diffseg.types import Bool, Float, Int, UInt8

_LEVELS = 12  # a channel: 1,728 candidates; more change the palette's smallest distance by under a tenth
_LIGHTNESS = (0.38, 0.93)  # OKLab: darker colours are lost in shadows, lighter ones in skies
_CHROMA = (0.05, 0.21)  # OKLab: greys mean "ignored", very bright colours cover the photo
_FIRST = (  # the seven of Okabe and Ito, made for colour-blind readers too: most images need no more
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
)

# Linear RGB as it reaches a person without one of the three cones (Machado, Oliveira and Fernandes 2009, severity 1).
_VISION = {
    "usual": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
# OKLab (Ottosson 2020): linear RGB to cone responses, and their cube roots to lightness and two opponent axes.
_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_OPPONENT = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def perceived(colors: Int[np.ndarray, "C 3"] | UInt8[np.ndarray, "C 3"]) -> Float[np.ndarray, "E C 3"]:
    """Convert sRGB colours to OKLab, once for each of E kinds of colour vision: usual, and without one kind of cone.

    Distances in OKLab are close to perceived ones: 0.02 is just noticeable.
    """
    unit = colors / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    seen = np.stack([(linear @ np.array(kind).T).clip(0, 1) for kind in _VISION.values()])
    oklab: np.ndarray = np.cbrt(seen @ np.array(_CONES).T) @ np.array(_OPPONENT).T
    return oklab


def distinct_colors() -> UInt8[np.ndarray, "C 3"]:
    """The palette, the colour of id 0 first."""
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    usual = perceived(candidates)[0]
    chroma = np.hypot(usual[:, 1], usual[:, 2])
    visible = _between(usual[:, 0], _LIGHTNESS) & _between(chroma, _CHROMA)
    candidates, seen = candidates[visible], perceived(candidates[visible])

    chosen = np.array([IGNORED, *_FIRST], dtype=np.uint8)
    nearest = _distance(seen[:, :, None], perceived(chosen)[:, None]).min(-1)
    while len(chosen) <= PALETTE_SIZE:
        best = int(nearest.argmax())
        chosen = np.concatenate([chosen, candidates[best : best + 1]])
        nearest = np.minimum(nearest, _distance(seen, seen[:, best : best + 1]))
    return chosen[1:]


def _between(values: Float[np.ndarray, " C"], limits: tuple[float, float]) -> Bool[np.ndarray, " C"]:
    return (values > limits[0]) & (values < limits[1])


def _distance(first: Float[np.ndarray, "E ... 3"], second: Float[np.ndarray, "E ... 3"]) -> Float[np.ndarray, "..."]:
    """Distance of colours for the kind of colour vision that distinguishes them least."""
    least: np.ndarray = np.linalg.norm(first - second, axis=-1).min(0)
    return least


if __name__ == "__main__":
    sys.stdout.write(" ".join(bytes(color).hex() for color in distinct_colors()) + "\n")
