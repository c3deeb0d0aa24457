"""Graphs for torch.compile: one of the encoder and one of the UNet; few compilations for batches of mixed shapes."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process without run-time type checks, which dynamo would trace too
MIXED = """
import sys
from collections import Counter

import torch
from torch._dynamo.utils import counters

from diffseg import SegmentConfig
from diffseg.models.unet.backend import Backend
from infra.embedded.checkpoints import random_checkpoint

torch.set_num_threads(1)
SHAPES = (  # images, and the sides of the model's input in units of 64 pixels
    (2, 1, 1), (4, 1, 1), (2, 2, 1), (2, 1, 2), (8, 1, 2), (4, 2, 1),
    (4, 2, 2), (2, 3, 1), (16, 1, 1), (2, 1, 3), (4, 1, 3), (2, 2, 2),
)
folder = str(random_checkpoint("sd1.5", sys.argv[1], small=True))
backend = Backend.load(folder, SegmentConfig(image_size=64, dtype="float32"), "cpu")
compiled = Counter()

def counting(name):
    def take(graph, example_inputs):
        compiled[name] += 1
        return graph.forward
    return take

backend.unet.compile(backend=counting("unet"))
backend.encoder.get_submodule("encoder").compile(backend=counting("encoder"))
for number, (images, height, width) in enumerate(SHAPES):
    backend.attend(torch.zeros(images, 3, 64 * height, 64 * width))
    print(number, dict(compiled))
assert not counters["graph_break"], counters["graph_break"]
assert 0 < max(compiled.values()) < torch._dynamo.config.recompile_limit, compiled
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mixed_batches_are_served_by_few_compilations_and_no_graph_breaks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MIXED, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
