"""What a batch asks of a GPU, counted without one: launches, waits of the host, copies up and down, each by its line.

Run anywhere: `python infra/benchmarks/costs.py [CASE ...]` prints a table; `--places` adds the lines that launch, wait
or copy; `--write` writes `costs.json`, which no batch may exceed (`make test`). The stand-in CUDA device of the tests
counts. No kernel of Triton runs there, so that of the pass copies alone are counted. Nothing is compiled, and there are
no CUDA graphs. Of two batches of a kind it is the second: what the first one leaves on the device is not paid again.
"""

import argparse
import ast
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from diffseg import DiffSeg, SegmentConfig
from diffseg.models.specs import VITS
from infra.embedded.checkpoints import random_checkpoint
from infra.scenes.scene import draw_scene
from tests.support.cuda.cuda_standin import CudaStandIn

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_suffix(".json")
KINDS = ("launches", "syncs", "uploads", "downloads")
SIDE, SIZE = 128, (96, 128)  # of the model's input and of photos: counts hardly depend on them
PASSES = "diffseg/models/"  # where a pass is made: what is launched there is not counted
GREEDY: dict[str, Any] = {"tree": False, "edges": False}
FAMILIES = ("sd1.4", "sd2.1-base", "sdxl", "ssd-1b", "dinov2-small", "dinov3-small")
ALL: dict[str, Any] = {"vectors": True, "ridges": True}

Counts = dict[str, Counter[str]]  # of each of KINDS, by place


@dataclass(frozen=True)
class Case:
    """A batch: of which model, labelled how, of how many images."""

    model: str = "tiny"
    config: dict[str, Any] = field(default_factory=dict)
    batch: int = 16


CASES = {
    **{f"greedy, batch {batch}": Case(config=GREEDY, batch=batch) for batch in (16, 4)},
    **{f"greedy and edges, batch {batch}": Case(config={"tree": False}, batch=batch) for batch in (16, 4)},
    **{f"default, batch {batch}": Case(batch=batch) for batch in (16, 4)},
    **{f"vectors, batch {batch}": Case(config={"vectors": True}, batch=batch) for batch in (16, 4)},
    "crops, batch 4": Case(config={"crop_layers": 1}, batch=4),
    **{f"all but crops of a small {name}, batch 2": Case(name, ALL, 2) for name in FAMILIES},
}


def count(model: str, case: Case) -> Counts:
    """The costs of a batch. model: a name or folder that can be loaded."""
    unit = VITS[case.model].unit if case.model in VITS else 64
    config = SegmentConfig(image_size=SIDE // unit * unit, **case.config)
    images = [draw_scene(np.random.default_rng(number), SIZE).image for number in range(case.batch)]
    with CudaStandIn() as device:
        segmenter = DiffSeg.from_pretrained(model, config, batch_size=case.batch)
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


def by_function(counts: Counter[str]) -> Counter[str]:
    """Counts of functions, which keep their names when lines move."""
    found: Counter[str] = Counter()
    for place, times in counts.items():
        file, line = place.split()[0].split(":")
        found[f"{file} {_function(file, int(line))}"] += times
    return found


@cache
def _function(file: str, line: int) -> str:
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    around = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.lineno <= line <= (n.end_lineno or 0)]
    return max(around, key=lambda n: n.lineno).name if around else "-"


def grown(found: Counts, allowed: dict[str, dict[str, int]]) -> list[str]:
    """What costs more than is allowed in all, with the lines of the functions that grew."""
    lines = []
    for kind in KINDS:
        if found[kind].total() > sum(allowed[kind].values()):
            lines.append(f"{kind}: {found[kind].total()}, at most {sum(allowed[kind].values())}")
            more = by_function(found[kind]) - Counter(allowed[kind])
            lines += [
                f"  {times} {place}"
                for place, times in found[kind].items()
                if set(by_function(Counter([place]))) & set(more)
            ]
    return lines


def main() -> None:
    """Count, print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"begins of {'; '.join(CASES)}")
    parser.add_argument("--places", action="store_true")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    written = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if not asked.write:
        sys.stdout.write(f"| a batch | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}\n")
    for name in [name for name in CASES if name.startswith(tuple(asked.cases) or "")]:
        with TemporaryDirectory() as folder:
            case = CASES[name]
            model = case.model if case.model == "tiny" else str(random_checkpoint(case.model, Path(folder), small=True))
            counts = count(model, case)
        if asked.write:
            written[name] = {kind: dict(sorted(by_function(counts[kind]).items())) for kind in KINDS}
            continue
        sys.stdout.write(f"| {name} | {' | '.join(str(counts[kind].total()) for kind in KINDS)} |\n")
        for kind in KINDS if asked.places else ():
            lines = (f"  {times:4} {kind} {place}\n" for place, times in sorted(counts[kind].items()))
            sys.stdout.write("".join(lines))
    if asked.write:
        rows = (f" {json.dumps(name)}: {json.dumps(counts)}" for name, counts in sorted(written.items()))
        TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
