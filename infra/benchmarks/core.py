"""`python infra/benchmarks/core.py`: the method after capture against its bare matrix products on this machine.

One image on a 64 x 64 grid, 256 anchors, 512 x 512 labels, float32. The limit is two products of 256 x 4096 x 4096 for
the distances and one for the means. Pairs are interleaved, so that a busy moment hits both sides of a ratio.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from diffseg.labels.assign import assign
from diffseg.method.aggregate import aggregate
from diffseg.method.merge import merge

SIDE, SIZE, ANCHORS, REGIONS, PAIRS = 64, 512, 16, 10, 7
THRESHOLDS = (1.1, 1.1, 1.1)


@dataclass(frozen=True)
class CoreSpeed:
    """Medians in milliseconds, the ratio of each pair's core to its products, and what the core took of memory."""

    threads: int
    proposals: int
    aggregate_ms: float
    merge_ms: float
    assign_ms: float
    core_ms: float
    products_ms: float
    ratio: float
    peak_mib: float | None  # over the inputs; None where the system does not say


def bench_core(pairs: int = PAIRS) -> CoreSpeed:
    """Measure; a first pair warms up and does not count."""
    levels = attention()
    with torch.inference_mode():
        peak = peak_mib(lambda: core(levels, []))  # before anything has left memory behind to take again
        proposals = core(levels, [])
        anchors, maps = torch.rand(ANCHORS**2, SIDE**2), torch.rand(SIDE**2, SIDE**2)
        stages: list[list[float]] = []
        products: list[float] = []
        for _ in range(pairs + 1):
            stages.append([])
            core(levels, stages[-1])
            products.append(timed(lambda: (anchors @ maps.T, anchors @ maps.T, anchors @ maps)))
    wholes = [sum(each) for each in stages]
    aggregated, merged, assigned = (1e3 * median(each[i] for each in stages[1:]) for i in range(3))
    return CoreSpeed(
        threads=torch.get_num_threads(),
        proposals=proposals,
        aggregate_ms=aggregated,
        merge_ms=merged,
        assign_ms=assigned,
        core_ms=1e3 * median(wholes[1:]),
        products_ms=1e3 * median(products[1:]),
        ratio=median(whole / bare for whole, bare in zip(wholes[1:], products[1:], strict=True)),
        peak_mib=peak,
    )


def core(levels: list[Tensor], seconds: list[float]) -> int:
    """From captured levels to labels; the time of each stage is appended, the number of proposals returned."""
    clock = [perf_counter()]
    attended = aggregate(levels, (SIDE, SIDE))
    clock.append(perf_counter())
    proposals = merge(attended, THRESHOLDS, ANCHORS)
    clock.append(perf_counter())
    count = proposals.counts[0]
    assign(proposals.maps[0, :count].unflatten(-1, (SIDE, SIDE)), (SIZE, SIZE))
    clock.append(perf_counter())
    seconds += [after - before for before, after in pairwise(clock)]
    return count


def attention() -> list[Tensor]:
    """Maps of ten regions with soft borders and noise at the four levels of Stable Diffusion 1."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(REGIONS, 2, generator=generator)
    levels = []
    for side in (SIDE, SIDE // 2, SIDE // 4, SIDE // 8):
        line = (torch.arange(side) + 0.5) / side
        cells = torch.cartesian_prod(line, line)
        member = torch.softmax(-200 * torch.cdist(cells, centres).square(), -1)
        logits = 6 * member @ member.T - 4 * torch.cdist(cells, cells)
        logits += 0.5 * torch.randn(side**2, side**2, generator=generator)
        levels.append(torch.softmax(logits, -1)[None])
    return levels


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = perf_counter()
    work()
    return perf_counter() - start


def peak_mib(work: Callable[[], object]) -> float | None:
    """Most memory that the process held above what it holds now, while it works."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        return None
    before = _status_kib(status, "VmRSS")
    work()
    return (_status_kib(status, "VmHWM") - before) / 1024


def _status_kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(bench_core()), indent=2) + "\n")
