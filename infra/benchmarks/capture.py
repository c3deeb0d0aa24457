"""What capture adds to a UNet pass in the exact SD 1.5 layout: time and memory, on this processor.

Run on a quiet machine: `python infra/benchmarks/capture.py [--pairs 5] [--threads 2]`. Prints JSON.
Passes alternate, so that a slow minute hits both alike: without capture, with it, and with it in the UNet as it is
used, cut after its last self-attention.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median

import torch

from diffseg.models.unet.capture import capture_attention, cut_after_last_attention
from diffseg.models.unet.loading import new_part
from diffseg.models.unet.random_weights import fill_at_random, layout_of


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_over_start(step) -> int:
    """Bytes by which a step's peak exceeds what was held before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def shallow_cut(unet):
    """The same weights in a UNet cut after its last self-attention."""
    twin = copy.deepcopy(unet, {id(weight): weight for weight in unet.parameters()})
    cut_after_last_attention(twin)
    return twin


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layout = layout_of("sd1.5")
    unet = new_part(layout.unet, "meta").to_empty(device="cpu")
    fill_at_random(unet)
    cut = shallow_cut(unet)
    given = torch.randn(1, 4, 64, 64), 300, torch.randn(1, 77, layout.unet["cross_attention_dim"])

    def captured(model) -> None:
        with capture_attention(model) as store:
            model(*given)
        store.maps((64, 64))

    steps = {"without": lambda: unet(*given), "with": lambda: captured(unet), "as used": lambda: captured(cut)}
    for step in steps.values():
        step()
    peaks = {name: peak_over_start(step) for name, step in steps.items()}
    wall = {name: [] for name in steps}
    processor = {name: [] for name in steps}
    for _ in range(arguments.pairs):
        for name, step in steps.items():
            begin, work = time.perf_counter(), time.process_time()
            step()
            wall[name].append(time.perf_counter() - begin)
            processor[name].append(time.process_time() - work)
    print(  # noqa: T201 - a script's answer
        json.dumps(
            {
                "threads": arguments.threads,
                "pairs": arguments.pairs,
                "torch": torch.__version__,
                "seconds": {name: median(times) for name, times in wall.items()},
                "processor_seconds": {name: median(times) for name, times in processor.items()},
                "ratio": {
                    name: median(a / b for a, b in zip(wall[name], wall["without"], strict=True))
                    for name in ("with", "as used")
                },
                "processor_ratio": {
                    name: median(a / b for a, b in zip(processor[name], processor["without"], strict=True))
                    for name in ("with", "as used")
                },
                "extra_megabytes": {name: (peaks[name] - peaks["without"]) / 1e6 for name in ("with", "as used")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
