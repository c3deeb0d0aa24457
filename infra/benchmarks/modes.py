"""`python infra/benchmarks/modes.py`: paper against fast mode on the recorded inputs, as a Markdown table.

Needs the recorded results beside the repository (see tests/method/test_reference.py). One thread, processor time, the
shorter of two runs.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from diffseg import SegmentConfig, segment_attention
from tests.method.test_reference import CASES, REFERENCE, agreement, levels


def timed(maps, config):
    """Labels, and milliseconds of processor time."""
    took = []
    for _ in range(2):
        start = time.process_time()
        labels = segment_attention(maps, config, (512, 512))
        took.append(1000 * (time.process_time() - start))
    return labels.long().numpy(), min(took)


if __name__ == "__main__":
    torch.set_num_threads(1)
    columns = ["case", "paper = published", "paper, ms", "fast, ms", "fast = paper", "segments, paper / fast"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name in CASES:
        recorded = np.load(REFERENCE / "cases" / f"exp_{name}.npz")
        meta = json.loads(str(recorded["meta"]))
        common = {"thresholds": tuple(meta["tau"]), "anchors_per_side": meta["num_points"], "refine": meta["refine"]}
        maps = levels(meta["input"])
        paper, paper_ms = timed(maps, SegmentConfig(mode="paper", **common))
        fast, fast_ms = timed(maps, SegmentConfig(mode="fast", **common))
        published = max(
            agreement(paper, recorded[key].astype(np.int64)) for key in ("labels", "alt_labels") if key in recorded
        )
        counts = f"{paper.max() + 1} / {fast.max() + 1}"
        lines.append(
            f"| {name} | {100 * published:.4f} % | {paper_ms:.0f} | {fast_ms:.0f} "
            f"| {100 * agreement(fast, paper):.3f} % | {counts} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")
