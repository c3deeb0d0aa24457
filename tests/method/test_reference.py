"""Results recorded from the published code; skipped where they are not beside the repository."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from diffseg import SegmentConfig, segment_attention
from diffseg.method.aggregate import aggregate

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
CASES = sorted(path.stem.removeprefix("exp_") for path in REFERENCE.glob("cases/exp_*.npz"))
QUICK = "A"  # making one input takes five seconds

pytestmark = [
    pytest.mark.skipif(not CASES, reason="the recorded results are not here"),
    pytest.mark.timeout(600),  # making the inputs alone takes a minute where cores are shared
]


def marked(names):
    return [pytest.param(name, marks=[] if name.startswith(QUICK) else [pytest.mark.slow]) for name in names]


@functools.lru_cache(maxsize=1)
def levels(name):
    """Head means of an input's maps, finest first."""
    spec = importlib.util.spec_from_file_location("reference_generator", REFERENCE / "gen.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    case = generator.load_case(REFERENCE / "cases" / f"inp_{name}.npz")
    means = []
    for side in (64, 32, 16, 8):
        maps = generator.make_attn(case, sizes=(side,))
        assert generator.digests(maps)[str(side)] == case["sha256"][str(side)]
        means.append(torch.from_numpy(maps[side].mean(0)))
    return means


def agreement(labels, truth):
    """Share of pixels that agree under the best one-to-one renaming."""
    table = np.zeros((labels.max() + 1, truth.max() + 1))
    np.add.at(table, (labels.ravel(), truth.ravel()), 1)
    return table[linear_sum_assignment(-table)].sum() / labels.size


@pytest.mark.parametrize("name", marked(["A", "E", "Q"]))
def test_aggregation_equals_the_published_one(name):
    recorded = np.load(REFERENCE / "cases" / f"agg_{name}.npz")
    n = 64 * 64

    ours = aggregate([level[None] for level in levels(name)], (64, 64)).whole()[0].double().flatten() / n

    np.testing.assert_allclose(ours[recorded["idx"]], recorded["val"], rtol=2e-6)
    assert ours.sum().item() == pytest.approx(n, rel=1e-6)


@pytest.mark.parametrize("name", marked(CASES))
def test_paper_mode_gives_the_published_masks(name):
    recorded = np.load(REFERENCE / "cases" / f"exp_{name}.npz")
    meta = json.loads(str(recorded["meta"]))
    config = SegmentConfig(
        mode="paper", thresholds=tuple(meta["tau"]), anchors_per_side=meta["num_points"], refine=meta["refine"]
    )

    labels, trace = segment_attention(levels(meta["input"]), config, (512, 512), return_trace=True)

    truths = [recorded[key].astype(np.int64) for key in ("labels", "alt_labels") if key in recorded]
    assert max(agreement(labels.long().numpy(), truth) for truth in truths) >= 0.999
    # where float16 alone made the published counts, float64 says what they should have been
    assert trace == (meta["counts"] if meta["gate"] else meta["float64_counts"])
