"""What a batch asks of a GPU, counted without one: launches, waits of the host, copies up and down, each by its line.

Run anywhere: `python infra/benchmarks/costs.py [CASE ...]` prints a table; `--places` adds the lines that launch, wait
or copy, `--json` prints counts by place. The stand-in CUDA device of the tests counts. No kernel of Triton runs there,
so that of the pass copies alone are counted. Nothing is compiled, and there are no CUDA graphs.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from diffseg import DiffSeg, SegmentConfig
from infra.scenes.scene import draw_scene
from tests.support.cuda.cuda_standin import CudaStandIn

KINDS = ("launches", "syncs", "uploads", "downloads")
SIZE = (96, 128)  # of photos: counts of a sound program hardly depend on it
PASSES = "diffseg/models/"  # where a pass is made: what is launched there is not counted


@dataclass(frozen=True)
class Case:
    """A batch: of how many images, labelled how. batch: None: each image in its place of PHOTOS."""

    config: dict[str, Any] = field(default_factory=dict)
    batch: int = 4


GREEDY: dict[str, Any] = {"tree": False, "edges": False}
CASES = {
    **{f"greedy, batch {batch}": Case(GREEDY, batch) for batch in (16, 4)},
    **{f"greedy and edges, batch {batch}": Case({"tree": False}, batch) for batch in (16, 4)},
    **{f"default, batch {batch}": Case({}, batch) for batch in (16, 4)},
    **{f"vectors, batch {batch}": Case({"vectors": True}, batch) for batch in (16, 4)},
    **{f"crops, batch {batch}": Case({"crop_layers": 1}, batch) for batch in (16, 4)},
}

Counts = dict[str, Counter[str]]  # of each of KINDS, by place


def photos(count: int) -> list[np.ndarray]:
    """Generated scenes, each of its own content."""
    return [draw_scene(np.random.default_rng(number), SIZE).image for number in range(count)]


def count(model: str, config: SegmentConfig, images: Sequence[np.ndarray]) -> Counts:
    """The costs of one batch, the second of its kind: what the first one leaves behind is not paid again."""
    with CudaStandIn() as device:
        segmenter = DiffSeg.from_pretrained(model, config, batch_size=len(images))
        segmenter.segment(images)
        for counter in (device.launches, device.syncs, device.copies):
            counter.clear()
        segmenter.segment(images)
    found: Counts = {kind: Counter() for kind in KINDS}
    for kind, counted in (("launches", device.launches), ("syncs", device.syncs)):
        for (what, place), times in counted.items():
            if not place.startswith(PASSES):
                found[kind][f"{place} {what}" if kind == "syncs" else place] += times
    for (what, place), times in device.copies.items():
        found[f"{what}s"][place] += times
    return found


def main() -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"begins of {', '.join(CASES)}")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--places", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: case for name, case in CASES.items() if name.startswith(tuple(asked.cases) or "")}
    found = {
        name: count(asked.model, SegmentConfig(image_size=128, **case.config), photos(case.batch))
        for name, case in chosen.items()
    }
    if asked.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    sys.stdout.write(f"| {asked.model} | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}\n")
    for name, counts in found.items():
        sys.stdout.write(f"| {name} | {' | '.join(str(counts[kind].total()) for kind in KINDS)} |\n")
        if asked.places:
            for kind in KINDS:
                lines = (f"  {times:4} {kind} {place}\n" for place, times in sorted(counts[kind].items()))
                sys.stdout.write("".join(lines))


if __name__ == "__main__":
    main()
