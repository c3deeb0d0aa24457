"""Photos with the masks of several methods below each other, to be looked at.

    python infra/benchmarks/masks/sheet.py sheet.jpg --method tiny --method dinov2-small --method felzenszwalb
    python infra/benchmarks/masks/sheet.py cuts.png --photos 'bsds-train-{00001..00003}.tar' --every 13 \
        --method tiny:edges

Without --photos: the dozen of the demo. Methods are those of masks.py. Two bands of six columns, photo on top.
"""

import argparse
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
from masks import method_of
from picture import GAP, tile
from PIL import Image
from styles import Sample, samples

from diffseg.draw import overlay

COLUMNS, BANDS = 6, 2


def demo() -> list[Sample]:
    """The photos that come with the package, without truth."""
    found = sorted(path for path in files("jobs").joinpath("photos").iterdir() if path.name.endswith(".jpg"))
    return [Sample(path.name, np.asarray(Image.open(path).convert("RGB")), []) for path in found]


def main() -> None:
    """Label, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--photos")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--width", type=int, default=1200, help="of the picture, pixels")
    parser.add_argument("--passes", type=Path, help="folder of passes that masks.py kept")
    given = parser.parse_args()
    shown = samples("photos", given.photos) if given.photos else demo()
    shown = list(islice(shown, 0, COLUMNS * BANDS * given.every, given.every))
    maps = []
    for name in given.method:
        method = method_of(name, given.passes)
        maps.append([method(sample)[0] for sample in shown])
    first = tile(shown[0].image)
    width, height = first.width + GAP, first.height + GAP
    band = (1 + len(maps)) * height
    sheet = Image.new("RGB", (COLUMNS * width - GAP, BANDS * band + (BANDS - 1) * GAP - GAP), "white")
    for i, sample in enumerate(shown):
        left, top = i % COLUMNS * width, i // COLUMNS * (band + GAP)
        rows = [sample.image, *(overlay(sample.image, each[i]) for each in maps)]
        for row, pixels in enumerate(rows):
            sheet.paste(tile(pixels), (left, top + row * height))
    size = (given.width, round(sheet.height * given.width / sheet.width))
    sheet.resize(size, Image.Resampling.LANCZOS).save(given.output, quality=70)


if __name__ == "__main__":
    main()
