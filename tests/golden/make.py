"""Write masks.npz: what the literal implementation makes of small synthetic inputs. `python tests/golden/make.py`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.support import literal, synthetic  # noqa: E402

CASES = {  # name: grid, factors of its levels, regions, thresholds, anchors a side, refine
    "square": ((16, 16), (1, 2, 4, 8), 5, (0.5, 0.5, 0.5), 8, False),
    "wide": ((8, 24), (1, 2, 4), 4, (0.45, 0.45, 0.45), 6, False),
    "tall": ((20, 12), (1, 2, 4), 4, (0.5, 0.4, 0.4), 5, False),
    "thirds": ((12, 12), (1, 2, 3), 4, (0.3, 0.3), 12, False),
    "one-threshold": ((12, 12), (1, 2), 3, (0.6,), 4, False),
    "one-anchor": ((12, 12), (1, 2), 3, (0.5, 0.5, 0.5), 1, False),
    "one-level": ((12, 16), (1,), 5, (0.8, 0.8, 0.8), 16, False),
    "refined": ((16, 16), (1, 2, 4), 6, (0.3, 0.3, 0.3), 8, True),
}


def inputs(name):
    """Grid and levels of a case."""
    grid, factors, count, *_ = CASES[name]
    seed = sum(name.encode())
    return grid, synthetic.attention(synthetic.blobs(grid, count, seed), factors, seed)


def expected(name):
    """Labels at eight pixels a cell, and the number of proposals after each iteration."""
    grid, levels = inputs(name)
    _, _, _, thresholds, per_side, refine = CASES[name]
    return literal.segment(levels, grid, thresholds, per_side, (grid[0] * 8, grid[1] * 8), refine)


if __name__ == "__main__":
    content: dict[str, Any] = {}  # savez_compressed has options beside its arrays
    for name in CASES:
        labels, counts = expected(name)
        content |= {f"{name}/labels": labels, f"{name}/counts": np.array(counts)}
        print(name, counts, labels.max() + 1)  # noqa: T201 - a script reports
    np.savez_compressed(HERE / "masks.npz", **content)
