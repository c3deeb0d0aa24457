"""Processor time of the thread that labels, outside the model's pass and outside kernels: what a GPU would wait for.

`python infra/benchmarks/host.py` labels batches of 16 with recorded maps on the stand-in CUDA device of the tests,
whose own time counts as that of kernels: the launches beside it are what a real device would be given. Photos are
prepared before, as decode threads do; what that takes stands beside it. Copies up and down count as the host's.
"""

import sys
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from time import thread_time
from typing import Any
from unittest import mock

import torch

from diffseg.config import SegmentConfig
from diffseg.labels import edges
from diffseg.models.load import load
from diffseg.segmenter import DiffSeg
from pipeline.bench.job import demo_photos
from pipeline.bench.stages import Structured, structured_maps
from tests.support.cuda.cuda_standin import CudaStandIn, CudaTensor

BATCH = 16
PART = 1 << 19  # pixels refined at a time: a GPU takes eight times as many, in an eighth of the launches
CONFIGS = {"tree, edges": {}, "tree": {"edges": False}, "greedy": {"edges": False, "tree": False}}


class Recorded(Structured):
    """Answers with prepared maps, and no pass."""

    def attend(self, pixels: torch.Tensor, **asked: Any) -> Any:
        """The maps."""
        return self._maps


class Kernels:
    """Seconds that the device's own operators take, the outermost of each call."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._inside = 0.0, 0, False

    def timed(self, own: Any) -> Any:
        """A function whose time counts."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return own(*args, **kwargs)
            self.calls += 1
            self._inside, began = True, thread_time()
            try:
                return own(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += thread_time() - began

        return run


def overhead(calls: int = 2000) -> float:
    """Seconds of a call that timing it adds outside of what is counted: asking for the time is slow on some systems."""
    idle = Kernels()
    nothing, began = idle.timed(lambda: None), thread_time()
    for _ in range(calls):
        nothing()
    return (thread_time() - began - idle.seconds) / calls


def measure(side: tuple[int, int], changes: dict[str, Any], repeats: int) -> str:
    """A row of the table."""
    with CudaStandIn() as device, ExitStack() as stack:
        backend = load("tiny", SegmentConfig(dtype="float32", **changes))
        photos = (2 * demo_photos(side))[:BATCH]
        segmenter = DiffSeg(backend, BATCH)
        began = thread_time()
        ready = [segmenter.prepare(photo) for photo in photos]
        prepared = (thread_time() - began) / BATCH
        shape = ready[0].shape
        grid = shape[0] // 8, shape[1] // 8
        levels = tuple(torch.empty(1, grid[0] * grid[1] // 4**i, grid[0] * grid[1] // 4**i) for i in range(3))
        like = replace(backend.attend(torch.zeros(1, 3, *shape[:2])), levels=levels, grid=grid)
        maps = structured_maps(like, BATCH)
        maps = replace(maps, levels=tuple(CudaTensor(level) for level in maps.levels))
        recorded = DiffSeg(Recorded(backend, maps), BATCH)
        kernels = Kernels()
        dispatch = classmethod(kernels.timed(CudaTensor.__dict__["__torch_dispatch__"].__func__))
        stack.enter_context(mock.patch.object(CudaTensor, "__torch_dispatch__", dispatch))
        stack.enter_context(mock.patch.dict(edges.PIXELS, cuda=PART))
        recorded.segment(ready)
        took = []
        for _ in range(repeats):
            launches, syncs = device.launches.total(), device.syncs.total()
            each = overhead()
            kernels.seconds, kernels.calls, began = 0.0, 0, thread_time()
            recorded.segment(ready)
            took.append(1e3 * (thread_time() - began - kernels.seconds - kernels.calls * each) / BATCH)
            launches, syncs = device.launches.total() - launches, device.syncs.total() - syncs
    name = f"{side[1]} x {side[0]}, " + ", ".join(f"{key} {value}" for key, value in changes.items())
    return f"| {name} | {1e3 * prepared:.2f} | {median(took):.2f} | {launches} | {syncs} |"


def main() -> None:
    """The table."""
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    sys.stdout.write(
        "| photo | prepared, ms of a decode thread | labelling thread, ms | launches a batch | waits |\n"
        "|---|---|---|---|---|\n"
    )
    for changes in CONFIGS.values():
        for side in ((480, 640), (1024, 1024)):
            sys.stdout.write(measure(side, changes, repeats) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
