"""How many objects are found that are alike and touch: components of segments against parts along ridges.

    python infra/benchmarks/instances.py recall --model tiny --count 100
    python infra/benchmarks/instances.py recall --model /models/dinov2-small --nuclei img2d.tif mask2d.tif
    python infra/benchmarks/instances.py sheet instances.png --model /models/dinov2-small

AR is the recall of objects, averaged over IoU of .50, .55 .. .95 as COCO does it; every instance counts, for none
overlaps another. Scenes: three to seven objects of one material and shape touch on a ground of another; those of
`--tune` are others. Nuclei: a micrograph with masks, as it is and in quarters at twice its scale; those of the wheel
stardist 0.9.2 are in `stardist/data/images`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from diffseg import DiffSeg, SegmentConfig
from diffseg.cut import components
from diffseg.draw import overlay, resize_labels
from diffseg.evaluation.bootstrap import mean_interval
from diffseg.ridges import split
from diffseg.types import IGNORE, Segmentation
from infra.scenes.scene import Scene
from infra.scenes.textures import Random, colour, surface

SIZE = (320, 480)
SEED = 20261129
THRESHOLDS = np.linspace(0.5, 0.95, 10)
LEAST = 0.0005  # of the image: smaller instances are left out, as `export --min-area 0.0005` does


def _round(random: Random, centre: np.ndarray, radius: float, flat: float, rough: float) -> np.ndarray:
    """An object about a centre (y, x): an ellipse whose outline wobbles."""
    y, x = np.indices(SIZE) - centre[:, None, None]
    tilt = random.uniform(0, np.pi)
    u, v = x * np.cos(tilt) + y * np.sin(tilt), (y * np.cos(tilt) - x * np.sin(tilt)) / flat
    turn, waves = np.arctan2(v, u), np.arange(2, 6)
    amplitude, phase = random.normal(0, rough / waves), random.uniform(0, 2 * np.pi, len(waves))
    inside: np.ndarray = np.hypot(u, v) < radius * np.exp((amplitude * np.cos(turn[..., None] * waves + phase)).sum(-1))
    return inside


def _centres(random: Random, count: int, radius: float) -> list[np.ndarray]:
    """Places (y, x) of which each is about two radii from another."""
    found = [np.array(SIZE) * random.uniform(0.3, 0.7, 2)]
    for _ in range(400):
        turn = random.uniform(0, 2 * np.pi)
        new = found[random.integers(len(found))] + 1.8 * radius * np.array([np.sin(turn), np.cos(turn)])
        free = all(np.hypot(*(new - other)) > 1.5 * radius for other in found)
        if free and (new > radius / 2).all() and (new < np.array(SIZE) - radius / 2).all():
            found.append(new)
        if len(found) == count:
            break
    return found


def touching(number: int, tune: bool = False) -> Scene:
    """A scene by its number; id 0 is the ground."""
    random = np.random.default_rng([SEED, int(tune), number])
    image = np.array(surface(random, SIZE, colour(random)))
    material, truth = surface(random, SIZE, colour(random)), np.zeros(SIZE, np.int32)
    radius, flat, rough = random.uniform(28, 50), random.uniform(0.7, 1), random.choice([0.03, 0.1])
    light, depth = random.uniform(0, 2 * np.pi), random.uniform(0.5, 1.5)
    for id_, centre in enumerate(_centres(random, int(random.integers(3, 8)), radius * flat), start=1):
        mask = _round(random, centre, radius, flat, rough)
        height = np.sqrt(mask.sum()) / 2 * ndimage.gaussian_filter(mask * 1.0, 0.15 * np.sqrt(mask.sum()) + 1)
        down, across = np.gradient(height)
        shade = np.exp(np.clip(depth * (across * np.cos(light) + down * np.sin(light)), -0.8, 0.8))
        image += ndimage.gaussian_filter(mask * 1.0, 0.8)[..., None] * (material * shade[..., None] - image)
        truth[mask] = id_
    image += random.normal(0, 2, image.shape)
    kept = np.flatnonzero(np.bincount(truth.ravel()) > 200)  # what others cover is no object any more
    return Scene(image.clip(0, 255).astype(np.uint8), np.where(np.isin(truth, kept), truth, 0).astype(np.int32))


def nuclei(photo: Path, masks: Path) -> Iterator[Scene]:
    """A micrograph, then its quarters at twice the scale."""
    grey, truth = (np.asarray(Image.open(path)).astype(float) for path in (photo, masks))
    low, high = np.percentile(grey, (1, 99.8))
    picture = np.repeat(((grey - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    yield Scene(picture, truth.astype(np.int32))
    half = truth.shape[0] // 2, truth.shape[1] // 2
    for top in (0, half[0]):
        for left in (0, half[1]):
            part = slice(top, top + half[0]), slice(left, left + half[1])
            large = Image.fromarray(picture[part]).resize((2 * half[1], 2 * half[0]), Image.Resampling.BICUBIC)
            yield Scene(np.asarray(large), truth[part].repeat(2, 0).repeat(2, 1).astype(np.int32))


def instances(found: Segmentation) -> dict[str, np.ndarray]:
    """Maps of instances by kind, and the best that any rule could make of the leaves."""
    assert found.leaf_map is not None
    assert found.ridges is not None
    parts = {
        "components": components(found.label_map)[0],
        "ridges": split(found.label_map, found.leaf_map, found.ridges),
    }
    return {kind: _large(part) for kind, part in parts.items()}


def _large(parts: np.ndarray) -> np.ndarray:
    areas = np.bincount(parts.ravel() + 1, minlength=parts.max() + 2)[1:]
    large: np.ndarray = np.where((areas >= LEAST * parts.size)[parts], parts, IGNORE)
    return large


def best_of_leaves(found: Segmentation, truth: np.ndarray) -> np.ndarray:
    """Pieces of leaves joined by the truth: each has the object that most of its pixels are of."""
    pieces, _ = components(found.leaf_map)  # type: ignore[arg-type]
    table = np.zeros((pieces.max() + 1, truth.max() + 1))
    np.add.at(table, (pieces, resize_labels(truth, pieces.shape)), 1)
    best: np.ndarray = table.argmax(1)[pieces]
    return best


def recalls(parts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The recall of an image's objects at each of THRESHOLDS."""
    parts = resize_labels(parts, truth.shape)
    table = np.zeros((truth.max() + 1, parts.max() + 2))
    np.add.at(table, (truth, parts), 1)  # the last column takes what is in no instance
    iou = table / np.maximum(table.sum(1, keepdims=True) + table.sum(0) - table, 1)
    best = iou[1:][table.sum(1)[1:] > 0, :-1].max(1, initial=0)
    return np.array([(best >= threshold).mean() for threshold in THRESHOLDS])


def recall(segmenter: DiffSeg, scenes: Iterator[Scene]) -> str:
    """A table of AR, recall at .50 and .75, and instances an image."""
    rows: dict[str, list[np.ndarray]] = {}
    for scene in scenes:
        [found] = segmenter.segment([scene.image])
        for kind, parts in (instances(found) | {"best of leaves": best_of_leaves(found, scene.truth)}).items():
            row = [*recalls(parts, scene.truth), len(np.unique(parts)), len(np.unique(scene.truth)) - 1]
            rows.setdefault(kind, []).append(np.array(row))
    said = ["| instances | AR | at .50 | at .75 | instances an image |", "|---|---|---|---|---|"]
    for kind, images in rows.items():
        figures = np.array(images)
        ar = mean_interval(figures[:, : len(THRESHOLDS)].mean(1))
        at = figures[:, [0, 5]].mean(0)
        said.append(
            f"| {kind} | {ar.value:.3f} ({ar.low:.3f} to {ar.high:.3f}) | {at[0]:.3f} | {at[1]:.3f} "
            f"| {figures[:, -2].mean():.1f} |"
        )
    gain = np.array(rows["ridges"]) - np.array(rows["components"])
    lead = mean_interval(gain[:, : len(THRESHOLDS)].mean(1))
    objects = np.mean([row[-1] for row in rows["ridges"]])
    said.append(f"\nridges above components, image by image: {lead.value:.3f} ({lead.low:.3f} to {lead.high:.3f})")
    return "\n".join(said) + f"\n{len(rows['ridges'])} images, {objects:.1f} objects each\n"


def sheet(segmenter: DiffSeg, count: int = 6) -> Image.Image:
    """Scenes beside their components and their parts along ridges."""
    rows = []
    for number in range(count):
        scene = touching(number)
        [found] = segmenter.segment([scene.image])
        shown = [
            overlay(scene.image, np.unique(parts, return_inverse=True)[1].reshape(parts.shape).astype(np.int32))
            for parts in instances(found).values()
        ]
        rows.append(np.hstack([scene.image, *shown]))
    return Image.fromarray(np.vstack(rows))


def main() -> None:
    """Measure, or draw a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("recall", "sheet"))
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--nuclei", nargs=2, type=Path, help="a micrograph and its masks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = DiffSeg.from_pretrained(given.model, SegmentConfig(ridges=True), device="cpu")
    if given.step == "sheet":
        sheet(segmenter).save(given.output)
    elif given.nuclei:
        sys.stdout.write(recall(segmenter, nuclei(*given.nuclei)))
    else:
        sys.stdout.write(recall(segmenter, (touching(number, given.tune) for number in range(given.count))))


if __name__ == "__main__":
    main()
