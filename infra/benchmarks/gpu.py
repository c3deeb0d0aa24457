"""The published speed table of a GPU: the exact SD 1.5 layout with random weights, 512 x 512, from decoded images in
host memory to label maps in host memory.

Run on a machine with a free GPU: `python infra/benchmarks/gpu.py --output infra/benchmarks`. It takes some 20 minutes,
most of them torch.compile's, and writes `gpu-<device>.json`, `gpu-<device>.md` and a profile of where the time goes.
Aims on an H200 in bfloat16: 150 images/s or more, and 10 % or less of the device's time after capture.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

BATCHES = (1, 4, 8, 16, 32, 64)
CHECKS = ["-m", "pytest", "-q", "-m", "gpu", "tests/models/test_capture.py", "tests/models/test_attention_triton.py"]


def bench(*flags: str) -> dict | None:
    """One run in a process of its own, so that none inherits another's memory; None where it failed."""
    command = [
        sys.executable,
        "-m",
        "jobs.shared.cli",
        "bench",
        "--random-weights",
        "sd1.5",
        "--image-size",
        "512",
        "--json",
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{' '.join(flags)}: {done.stderr.strip().splitlines()[-1:]}\n")
        return None
    return json.loads(done.stdout)


def sweep(dtype: str, compiled: bool) -> list[dict]:
    """All batch sizes that fit."""
    flags = ["--dtype", dtype, *(["--compile"] if compiled else [])]
    runs = (bench(*flags, "--batch-size", str(batch)) for batch in BATCHES)
    return [run for run in runs if run]


def row(run: dict) -> str:
    """One line of the table."""
    stages = {stage["name"]: stage for stage in run["stages"]}
    cells = [run["dtype"], "yes" if run["compile"] else "no", run["batch_size"], f"{run['images_per_s']:.1f}"]
    cells += [
        f"{stages[name]['ms']:.2f}"
        for name in ("vae", "unet", "capture", "aggregate", "tree", "argmax", "edges", "clean")
    ]
    cells += [f"{run['core_share']:.1%}", f"{run['peak_bytes'] / 1e9:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def profile(batch: int) -> str:
    """The kernels that take the most time in one labelled batch, uncompiled."""
    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity, profile

    from diffseg import DiffSeg, SegmentConfig
    from diffseg.models.load import random_backend

    backend = random_backend("sd1.5", SegmentConfig(dtype="bfloat16", image_size=512), "cuda")
    segmenter = DiffSeg(backend, batch)
    images = [np.random.default_rng(i).integers(0, 256, (512, 512, 3), dtype=np.uint8) for i in range(batch)]
    for _ in range(3):
        segmenter.segment(images)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        segmenter.segment(images)
        torch.cuda.synchronize()
    return profiled.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=80)


def main() -> None:
    """Check the kernels, measure, write."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("infra/benchmarks"))
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        raise SystemExit("this table is of a GPU, and there is none here")
    subprocess.run([sys.executable, *CHECKS], check=True)
    runs = [
        run
        for dtype, compiled in (("bfloat16", False), ("bfloat16", True), ("float16", False))
        for run in sweep(dtype, compiled)
    ]
    if not runs:
        raise SystemExit("no run of the bench succeeded; its errors are above")
    best = max(runs, key=lambda run: run["images_per_s"])
    name = f"gpu-{re.sub(r'[^a-z0-9]+', '-', best['device'].lower())}"
    header = [
        "dtype",
        "compiled",
        "batch",
        "images/s",
        "VAE ms",
        "UNet",
        "capture",
        "aggregate",
        "tree",
        "argmax",
        "edges",
        "clean",
    ]
    header += ["core share", "peak GB"]
    table = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(row(run) for run in runs)]
    limits = best["limits"]
    lines = [
        f"# {best['device']}, SD 1.5 layout with random weights, 512 x 512, torch {best['torch']}",
        "",
        *table,
        "",
        f"Best: {best['images_per_s']:.1f} images/s. Measured in that run: "
        f"{limits['model_flop_s'] / 1e12:.0f} TFLOP/s in {best['dtype']}, {limits['byte_s'] / 1e9:.0f} GB/s.",
        "",
        "```",
        profile(min(16, best["batch_size"])),
        "```",
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(runs, indent=2) + "\n")
    (output / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
