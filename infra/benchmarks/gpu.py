"""The published speed table of a GPU: the exact SD 1.5 layout with random weights at 512 pixels, photos of COCO's sizes
and mixed aspects, from decoded images in host memory to label maps in host memory.

`python infra/benchmarks/gpu.py` on a machine with a free GPU checks the kernels, measures stages and a window of 1,024
photos, and ends in a table and a profile: `gpu-<device>.md` and `.json` in `--output`. It takes some 20 minutes with
`--compile`, a few without. `--computed` needs no GPU: it writes `gpu.md`, the same stages by their arithmetic, bytes
and launches. `--stand-in` tries the window and the profile on the CUDA device of the tests, for their function alone.
Aims on an H200 in bfloat16: 250 images/s or more, and 10 % or less of the device's time after capture.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffseg import DiffSeg, SegmentConfig
from diffseg.models.load import random_backend
from diffseg.models.unet.capture import capture_attention
from diffseg.models.unet.random_weights import CONTEXT
from infra.benchmarks.engine.batches import coco_sizes
from pipeline.bench.job import demo_photos
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.worker.window import WindowWork
from tests.support.cuda.cuda_standin import CudaStandIn
from tests.support.cuda.memory import attention_without_numbers

BATCHES = (8, 16, 32)
CHECKS = ["-m", "pytest", "-q", "-m", "gpu", "tests/models/test_capture.py", "tests/models/test_attention_triton.py"]
STAGES = ("vae", "unet", "capture", "aggregate", "tree", "argmax", "edges", "clean")
THREADS = 4  # that decode and prepare, as in a worker
CEILINGS = {"H100": (798e12, 3.0e12), "H200": (790e12, 4.3e12)}  # bfloat16 FLOP/s and bytes/s measured on such cards


def bench(*flags: str) -> dict[str, Any] | None:
    """The stages, in a process of its own, so that none inherits another's memory; None where it failed."""
    command = [sys.executable, "-m", "jobs.entry.diffseg_command", "bench", "--random-weights", "sd1.5", "--json"]
    done = subprocess.run([*command, "--image-size", "512", *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"{' '.join(flags)}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def say(line: str) -> None:
    """A line that is seen at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def photos(count: int) -> Iterator[Any]:
    """The demo's photos at COCO's sizes."""
    made: dict[tuple[int, int], list[Any]] = {}
    for number, size in enumerate(coco_sizes(count)):
        own = made.setdefault(size, demo_photos(size))
        yield own[number % len(own)]


def window(segmenter: DiffSeg, images: list[Any]) -> float:
    """Images a second as a worker labels them: prepared in threads, batches by shape, a pass ahead of the labels."""
    work, before = WindowWork(ShardTask(Shard("s", "s.tar", 0, "")), 0), []
    most, began = segmenter.batch_size, perf_counter()

    def label(batch: list[Any]) -> None:
        nonlocal before
        ready = [sample.image for sample in batch]
        segmenter.launch(ready)
        segmenter.segment(before)
        before = ready

    with ThreadPoolExecutor(THREADS) as pool:
        for index, image in enumerate(pool.map(segmenter.prepare, images)):
            sample: Any = SimpleNamespace(image=image, raw=SimpleNamespace(index=index))
            if batch := work.batch_with(sample, most, 2 * most + 2):
                label(batch)
    for batch in work.batches_left():
        label(batch)
    segmenter.segment(before)
    return len(images) / (perf_counter() - began)


def profiled(run: Callable[[], Any], cuda: bool) -> str:
    """What takes the most time."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        run()
    order = "cuda_time_total" if cuda else "cpu_time_total"
    return str(found.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=80))


def measured(output: Path, compiled: bool) -> None:
    """The table of a card."""
    if not torch.cuda.is_available():
        raise SystemExit("this table is of a GPU, and there is none here: --computed and --stand-in need none")
    subprocess.run([sys.executable, *CHECKS], check=True)
    settings = [
        (dtype, flag) for dtype in ("bfloat16", "float16") for flag in ((False, True) if compiled else (False,))
    ]
    runs, name = [], torch.cuda.get_device_name()
    images = list(photos(1024))
    for dtype, flag in settings:
        for batch in BATCHES:
            run = bench("--dtype", dtype, "--batch-size", str(batch), *(["--compile"] if flag else []))
            if run:
                config = SegmentConfig(dtype=dtype, image_size=512, compile=flag)
                segmenter = DiffSeg(random_backend("sd1.5", config, "cuda"), batch)
                window(segmenter, images[: 8 * batch])
                runs.append(run | {"window_images_per_s": window(segmenter, images)})
                say(row(runs[-1]))
    if not runs:
        raise SystemExit("no run of the bench succeeded; its errors are above")
    best = max(runs, key=lambda run: run["window_images_per_s"])
    segmenter = DiffSeg(random_backend("sd1.5", SegmentConfig(dtype="bfloat16", image_size=512), "cuda"), 16)
    lines = [
        f"# {name}, SD 1.5 layout with random weights, 512 pixels, torch {best['torch']}",
        "",
        *table(runs),
        "",
        f"A window of 1,024 photos of COCO's sizes: {best['window_images_per_s']:.1f} images/s at best.",
        "",
        "```",
        profiled(lambda: window(segmenter, images[:128]), cuda=True),
        "```",
    ]
    stem = output / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    stem.with_suffix(".json").write_text(json.dumps(runs, indent=2) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown of runs."""
    header = ["dtype", "compiled", "batch", "images/s, window", "images/s, one size", *STAGES, "core share", "peak GB"]
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *map(row, runs)]


def row(run: dict[str, Any]) -> str:
    """One line of it, stages in ms an image."""
    stages = {stage["name"]: stage for stage in run["stages"]}
    cells = [run["dtype"], "yes" if run["compile"] else "no", run["batch_size"]]
    cells += [f"{run['window_images_per_s']:.1f}", f"{run['images_per_s']:.1f}"]
    cells += [f"{stages[name]['ms']:.2f}" if name in stages else "" for name in STAGES]
    cells += [f"{run['core_share']:.1%}", f"{run['peak_bytes'] / 1e9:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


class Counted(TorchDispatchMode):
    """Operators that compute, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        if not operator.is_view and operator.__name__.split(".")[0] not in ("detach", "empty", "alias"):
            self.launches += 1
            moved = (x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor))
            self.bytes += sum(x.numel() * x.element_size() for x in moved)
        return made


def counted(run: Callable[[], Any]) -> tuple[float, int, int]:
    """FLOP, bytes and launches."""
    with attention_without_numbers(), FlopCounterMode(display=False) as flop, Counted() as seen:
        run()
    return flop.get_total_flops(), seen.bytes, seen.launches


def computed(output: Path, name: str = "sd1.5", batch: int = 32) -> None:
    """The stages of a pass at full size, on tensors without numbers; the least that a card's measured rates allow."""
    backend: Any = random_backend(name, SegmentConfig(dtype="bfloat16", image_size=512), "meta")
    pixels = torch.empty(batch, 3, 512, 512, device="meta")
    latents = backend.latents(pixels)
    conditions = backend.conditions(pixels)

    def unet() -> None:
        with capture_attention(backend.unet):
            backend.unet(latents, backend.config.timestep, **conditions)

    cells = [int((level * 512 / backend.spec.image_size) ** 2) for level, _ in backend.spec.levels]
    widths = [width for width, _ in backend.captured()]
    layers = [count for _, count in backend.spec.levels]
    each = list(zip(cells, widths, layers, strict=True))
    # of the fused kernels, which the counter does not see: of cells among each other, and of cells with the prompt
    attention = batch * sum(4 * n * (n + CONTEXT) * width * count for n, width, count in each)
    encoder = batch * 4 * latents[0, 0].numel() ** 2 * backend.encoder.config.block_out_channels[-1]
    capture = batch * sum(2 * n * n * width * count for n, width, count in each)
    traffic = batch * sum(2 * 4 * n * n * count for n, _, count in each)
    finest = cells[0]
    tree = batch * 2 * 2 * ((finest / 4) ** 2 + backend.config.leaves * finest) * finest
    flop, moved, launches = counted(unet)
    encoding, *others = counted(lambda: backend.latents(pixels))
    stages = [
        ("VAE encoder", encoding + encoder, *others),
        ("UNet", flop + attention, moved, launches),
        ("capture", capture, traffic, sum(layers)),
        ("aggregate and tree", tree, batch * 3 * 4 * finest**2, None),
    ]
    lines = [
        "# A GPU, computed",
        "",
        f"No GPU ran this. {name}, bfloat16, 512 x 512, batch {batch}, by `python infra/benchmarks/gpu.py --computed`:",
        "FLOP and operators of the model as torch dispatches them at full size without numbers; bytes as each operator",
        "reads its arguments and writes its result, uncompiled. A time is the larger of FLOP over the best matrix",
        "product and of bytes over the best copy measured on such a card: no stage can take less as it is written, and",
        "none is claimed to take as little. Launches and waits after the pass are counted in `costs.json`; edges are",
        "left out here.",
        "`python infra/benchmarks/gpu.py` measures the same stages on a card.",
        "",
        "| stage | TFLOP an image | GB an image | operators a batch | ms an image, H100, computed | H200, computed |",
        "|---|---|---|---|---|---|",
    ]
    for stage, work, size, count in stages:
        least = [1e3 * max(work / rate, size / width) / batch for rate, width in CEILINGS.values()]
        times = " | ".join(f"{ms:.2f}" for ms in least)
        lines.append(f"| {stage} | {work / batch / 1e12:.3f} | {size / batch / 1e9:.2f} | {count or ''} | {times} |")
    (output / "gpu.md").write_text("\n".join(lines) + "\n")
    say("\n".join(lines))


def tried() -> None:
    """The window and the profile on the stand-in device, with the embedded model at a small size."""
    from diffseg.models.load import load

    with CudaStandIn():
        segmenter = DiffSeg(load("tiny", SegmentConfig(image_size=128, edges=False)), 4)
        images = [image[::4, ::4] for image in photos(6)]
        rate = window(segmenter, [x.copy() for x in images])
        say(f"the stand-in labelled {len(images)} photos ({rate:.1f} a second, which says nothing of a card)")
        say(profiled(lambda: window(segmenter, images[:2]), cuda=False)[:2000])


def main() -> None:
    """Measure, compute, or try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("infra/benchmarks"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--computed", action="store_true")
    parser.add_argument("--stand-in", action="store_true")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.computed:
        computed(given.output)
    elif given.stand_in:
        tried()
    else:
        measured(given.output, given.compile)


if __name__ == "__main__":
    main()
