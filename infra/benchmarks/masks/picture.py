"""`python infra/benchmarks/masks/picture.py`: the README's picture, demo.jpg beside this file.

Six demo photos: as they are, the embedded model's segments, Felzenszwalb's (tuned on other images).
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg import DiffSeg
from diffseg.draw import overlay
from diffseg.evaluation.baselines import felzenszwalb

PHOTOS = ("great_wall", "crab", "astronaut", "sheep", "rocket", "macaw")
TILE = (240, 180)  # pixels, width and height
GAP = 6


def tile(pixels):
    """An image cut to the tile's aspect and scaled to it."""
    image = Image.fromarray(pixels)
    scale = max(TILE[0] / image.width, TILE[1] / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - TILE[0]) // 2, (image.height - TILE[1]) // 2
    return image.crop((left, top, left + TILE[0], top + TILE[1]))


def main():
    """Label, draw, save."""
    folder = files("jobs").joinpath("photos")
    photos = [np.asarray(Image.open(folder.joinpath(f"{name}.jpg")).convert("RGB")) for name in PHOTOS]
    results = DiffSeg.from_pretrained("tiny").segment(photos)
    sheet = Image.new("RGB", (len(photos) * (TILE[0] + GAP) - GAP, 3 * (TILE[1] + GAP) - GAP), "white")
    for column, (photo, result) in enumerate(zip(photos, results, strict=True)):
        rows = (photo, overlay(photo, result.label_map), overlay(photo, felzenszwalb(photo)))
        for row, pixels in enumerate(rows):
            sheet.paste(tile(pixels), (column * (TILE[0] + GAP), row * (TILE[1] + GAP)))
    sheet.save(Path(__file__).parents[1] / "demo.jpg", quality=88)


if __name__ == "__main__":
    main()
