"""Masks of several models, variants and baselines on the same images, each image by image against the others.

    python infra/benchmarks/masks/masks.py measure FOLDER --photos 'bsds-train-{00001..00003}.tar' --set photos \
        --set scenes --method tiny --method dinov2-small=/models/dinov2-small:greedy --method felzenszwalb \
        --method humans
    python infra/benchmarks/masks/masks.py table FOLDER --set photos --against felzenszwalb

`measure` keeps a line an image in FOLDER/<set>/<method>.jsonl and goes on where it was stopped. A method is a baseline,
`humans`, or a model: MODEL or NAME=FOLDER, with :VARIANT for settings other than the default and :VARIANT@HEIGHT for
another cut of a tree. Passes over the photos are kept in FOLDER/passes, so that a variant costs no second pass; its
milliseconds are those of one core after the pass.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from styles import SETS, Sample, samples

from diffseg import DiffSeg, SegmentConfig
from diffseg.evaluation.baselines import BASELINES
from diffseg.evaluation.bootstrap import mean_interval
from diffseg.evaluation.scores import average, score_image, whole_view
from diffseg.models.load import load

HUMANS = "humans"
MEASURES = {"covering": "covering", "ari": "ARI", "boundary_f": "boundary F"}
PLAIN = SegmentConfig(edges=False, tree=False, vectors=False)  # labels as of 0.1.0
VARIANTS = {  # settings of a model, by what a method says after its colon
    "default": SegmentConfig(),
    "greedy": PLAIN,
    "edges": replace(PLAIN, edges=True),
    "tree-no-edges": replace(PLAIN, tree=True),
    "tree": replace(PLAIN, edges=True, tree=True),
    "crops": SegmentConfig(crop_layers=1),
    "quality-no-edges": SegmentConfig(mode="quality", edges=False),
    "quality": SegmentConfig(mode="quality"),
    "quality-8": SegmentConfig(mode="quality", clusters=8),
}
KEPT = ("photos",)  # sets whose passes are kept: 10 MB a photo

LabelMap = np.ndarray
Method = Callable[[Sample], tuple[LabelMap, float]]  # and the seconds of a core it took, but for the model's pass


class Recorded:
    """A model whose passes are kept in a folder. folder: None: nothing is kept."""

    def __init__(self, backend, folder: Path | None) -> None:
        self.backend, self.folder, self.seconds = backend, folder, 0.0
        self.config, self.device = backend.config, backend.device
        self._of = f"{backend.files.sha256}{self.config.timestep}{backend.spec}"
        if folder is not None:
            self.folder = folder / self.config.mode  # a mode may have a pass of its own
            self.folder.mkdir(parents=True, exist_ok=True)

    def batch_size(self) -> int:
        """One: images are timed alone."""
        return 1

    def attend(self, pixels: torch.Tensor, *, features: bool = True):
        """A pass with features, from the folder where it was done before; `seconds` adds up what this call took."""
        began = time.process_time()
        if self.folder is None:
            maps = self.backend.attend(pixels, features=features)
        else:
            digest = hashlib.blake2b(pixels.numpy().tobytes() + self._of.encode(), digest_size=16).hexdigest()
            path = self.folder / f"{digest}.pt"
            if not path.exists():
                draft = path.with_suffix(".draft")
                torch.save(self.backend.attend(pixels, features=True), draft)
                draft.rename(path)
            maps = torch.load(path, weights_only=False)
        self.seconds += time.process_time() - began
        return maps


def method_of(name: str, passes: Path | None) -> Method:
    """What labels the samples. Raises ValueError for an unknown variant or model."""
    if name in BASELINES:
        return lambda sample: _timed(lambda: BASELINES[name](sample.image))
    model, _, variant = name.partition(":")
    variant, _, height = variant.partition("@")
    config = VARIANTS[variant or "default"]
    config = replace(config, cut=float(height)) if height else config
    recorded = Recorded(load(model.rpartition("=")[2], config), passes)
    segmenter = DiffSeg(recorded)

    def label(sample: Sample) -> tuple[LabelMap, float]:
        recorded.seconds = 0.0
        label_map, seconds = _timed(lambda: segmenter.segment([sample.image])[0].label_map)
        return label_map, seconds - recorded.seconds

    return label


def _timed(step: Callable[[], LabelMap]) -> tuple[LabelMap, float]:
    began = time.process_time()
    return step(), time.process_time() - began


def score(sample: Sample, method: Method | None) -> dict:
    """A line of the folder. method: None: the annotators against each other."""
    if method is None:
        others = [(each, sample.truths[:i] + sample.truths[i + 1 :]) for i, each in enumerate(sample.truths)]
        found, seconds = average([score_image(each, rest) for each, rest in others]), 0.0
    else:
        label_map, seconds = method(sample)
        found = score_image(whole_view(*sample.truths[0].shape).sample(label_map), sample.truths)
    figures = {name: getattr(found, name) for name in (*MEASURES, "segments", "regions")}
    return {"key": sample.key, **figures, "ms": 1000 * seconds}


def lines_of(path: Path) -> dict[str, dict]:
    """The lines measured so far by key, but for one that a killed process left without its end."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["key"]: row for row in rows}


def measure(folder: Path, photos: str, of: str, name: str, every: int) -> None:
    """Measure every so manieth image of one set with one method, those that have a line already left out."""
    shown = name.partition("=")[0] + (f":{name.partition(':')[2]}" if ":" in name and "=" in name else "")
    path = folder / of / f"{shown}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = lines_of(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in done.values()))
    passes = folder / "passes" if of in KEPT else None
    method = None if name == HUMANS else method_of(name, passes)
    with path.open("a") as out:
        for sample in islice(samples(of, photos), 0, None, every):
            if sample.key not in done:
                out.write(json.dumps(score(sample, method)) + "\n")
                out.flush()


def table(folder: Path, of: str, methods: list[str], against: list[str]) -> str:
    """Figures of a set in Markdown, then each method minus those it is held against, image by image."""
    found = {path.stem: lines_of(path) for path in sorted((folder / of).glob("*.jsonl"))}
    shown = {name: found[name] for name in methods or found}
    rows = []
    for name, lines in shown.items():
        values = {key: _column(lines, lines, key) for key in (*MEASURES, "segments", "ms")}
        others = [f"{values['segments'].mean():.1f}", f"{values['ms'].mean():.0f}"]
        rows.append([name, str(len(lines)), *(cell(values[key]) for key in MEASURES), *others])
    text = _markdown(["", "images", *MEASURES.values(), "segments", "ms"], rows)
    differences = []
    for other, (name, lines) in product(against, shown.items()):
        keys = sorted(lines.keys() & found[other].keys())
        if name != other and keys:
            lead = [cell(_column(lines, keys, key) - _column(found[other], keys, key)) for key in MEASURES]
            differences.append([f"{name} minus {other}", str(len(keys)), *lead])
    if differences:
        text += "\n" + _markdown(["image by image", "images", *MEASURES.values()], differences)
    return text


def cell(values: np.ndarray) -> str:
    """A mean with its 95 % interval."""
    interval = mean_interval(values)
    value, low, high = (f"{round(x, 3) + 0.0:.3f}" for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def _column(lines: dict[str, dict], keys: Iterable[str], measure: str) -> np.ndarray:
    return np.array([lines[key][measure] for key in keys])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", default="bsds-train-{00001..00003}.tar")
    parser.add_argument("--set", action="append", choices=SETS, required=True)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--every", type=int, default=1, help="measure every so manieth image")
    parser.add_argument("--against", action="append", default=[])
    given = parser.parse_args()
    for of in given.set:
        if given.step == "measure":
            for name in given.method:
                measure(given.folder, given.photos, of, name, given.every)
        else:
            sys.stdout.write(f"### {of}\n\n{table(given.folder, of, given.method, given.against)}\n")


if __name__ == "__main__":
    main()
