"""The measured limits of a machine, and the clock and the counter with which steps are held against them."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffseg.method.tf32 import tensor_cores
from diffseg.models.fused_attention import FLASH_ON_CPU
from diffseg.segmenter import Model

Step = Callable[[], Any]


@dataclass(frozen=True)
class Limits:
    """The best rates of the machine, measured with the stages: operations of matrix products, bytes of a copy."""

    model_flop_s: float  # in the model's precision
    core_flop_s: float  # in the precision of the distances
    byte_s: float


def clock(device: torch.device, repeats: int, *steps: Step) -> list[float]:
    """Median seconds of each step on a device after a warm-up, interleaved so that a busy moment hits all of them."""
    wait: Step = partial(torch.cuda.synchronize, device) if device.type == "cuda" else (lambda: None)
    taken: list[list[float]] = [[] for _ in steps]
    for attempt in range(repeats + 1):
        for step, times in zip(steps, taken, strict=True):
            wait()
            begin = time.perf_counter()
            step()
            wait()
            if attempt:  # the first run warms caches and compilers up
                times.append(time.perf_counter() - begin)
    return [median(times) for times in taken]


def measure_limits(backend: Model) -> Limits:
    """The best of several matrix products and copies."""
    cuda = backend.device.type == "cuda"
    side, count = (8192, 1 << 28) if cuda else (1024, 1 << 25)
    best = partial(clock, backend.device, 7)
    rates = []
    reduced = backend.config.dtype != "float32"
    for dtype in (getattr(torch, backend.config.dtype), torch.float32):
        a, b = (torch.randn(side, side, device=backend.device).to(dtype) for _ in range(2))
        with tensor_cores(allowed=reduced):
            rates.append(2 * side**3 / best(partial(torch.mm, a, b))[0])
    source = torch.ones(count, device=backend.device)
    target = torch.empty_like(source)
    return Limits(rates[0], rates[1], 2 * source.nbytes / best(lambda: target.copy_(source))[0])


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: by the device, or by this process where the device is the processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def count_flop(step: Step) -> float:
    """Operations of a step's products and convolutions; a multiply-add counts two."""
    counter = FlopCounterMode(display=False, custom_mapping={FLASH_ON_CPU: _attention_flop})
    with counter:
        step()
    return float(counter.get_total_flops())


def _attention_flop(query: Any, key: Any, *_: Any, **__: Any) -> int:
    images, heads, rows, channels = query
    return int(4 * images * heads * rows * key[2] * channels)
