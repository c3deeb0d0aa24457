"""Forward passes of a window of mixed photos, and what it does to labels that batches are formed by shape.

`python infra/benchmarks/engine/batches.py` counts the passes of 1,024 photos of COCO's sizes, batches formed in plain
order and by shape. `--shards TAR... --model MODEL` labels photos both ways and prints the share of pixels that agree.
"""

import argparse
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffseg.config import ResolvedConfig
from diffseg.evaluation.matching import agreement
from diffseg.method.geometry import frame
from pipeline.inputs import shards
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.messages import ShardTask
from pipeline.records import READER, ImageSample, Shard
from pipeline.worker.window import WindowWork

# Width and height of photos, and how many of a thousand have them: written down from general knowledge of COCO 2017, of
# which nothing was at hand. The rest of the thousand has 640 pixels on its longer side and any aspect.
COCO = {
    (640, 480): 290, (480, 640): 100, (640, 427): 160, (640, 426): 65, (640, 428): 40, (640, 425): 35, (427, 640): 50,
    (426, 640): 20, (640, 424): 20, (500, 375): 35, (375, 500): 12, (500, 333): 12, (333, 500): 5, (640, 360): 20,
    (640, 640): 20, (612, 612): 15, (640, 512): 6, (500, 400): 4, (360, 640): 4, (640, 429): 15,
}  # fmt: skip
SD15 = ResolvedConfig(thresholds=(1.1,), timestep=300, image_size=512, dtype="bfloat16")


def say(line: str) -> None:
    """A line that is seen at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def coco_sizes(count: int) -> list[tuple[int, int]]:
    """Heights and widths, drawn from that table."""
    random = np.random.default_rng(0)
    listed = [(height, width) for (width, height), times in COCO.items() for _ in range(times)]
    found = []
    for _ in range(count):
        place, short = random.integers(1000), int(random.integers(240, 640))
        rest = (short, 640) if random.random() < 0.75 else (640, short)
        found.append(listed[place] if place < len(listed) else rest)
    return found


def in_plain_order(shapes: list[tuple[int, ...]], most: int) -> list[list[int]]:
    """Indices of each pass: photos of one shape among every `most` that follow each other."""
    passes = []
    for first in range(0, len(shapes), most):
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for i in range(first, min(first + most, len(shapes))):
            of_shape.setdefault(shapes[i], []).append(i)
        passes += of_shape.values()
    return passes


def by_shape(shapes: list[tuple[int, ...]], most: int, image_bytes: int) -> list[list[int]]:
    """Indices of each pass, as a worker forms its batches."""
    work, passes = WindowWork(ShardTask(Shard("s", "s.tar", 0, "")), 0), []
    for i, shape in enumerate(shapes):
        sample: Any = SimpleNamespace(
            image=SimpleNamespace(shape=shape, nbytes=image_bytes), raw=SimpleNamespace(index=i)
        )
        passes.append(work.batch_with(sample, most, 2 * most + 2))
    return [[sample.raw.index for sample in batch] for batch in [*passes, *work.batches_left()] if batch]


def told(name: str, passes: list[list[int]]) -> str:
    """A row of the table. Padded: images that a GPU is given beyond the photos, to make powers of two."""
    sizes = [len(batch) for batch in passes]
    padded = sum(max(2, 1 << (size - 1).bit_length()) - size for size in sizes)
    often = ", ".join(f"{size} x {times}" for size, times in sorted(Counter(sizes).items(), reverse=True)[:6])
    return f"| {name} | {len(sizes)} | {np.mean(sizes):.1f} | {sizes.count(1)} | {padded} | {often} |"


def count_passes() -> None:
    """The table of passes, with pictures and without."""
    shapes = [frame(size, SD15).model for size in coco_sizes(1024)]
    say(f"{len(set(shapes))} shapes of the model's input: {Counter(shapes).most_common(6)} ...")
    say("| | passes | mean size | of one photo | padded | size x times |\n|---|---|---|---|---|---|")
    for most in (16, 32):
        say(told(f"plain order, {most}", in_plain_order(shapes, most)))
        say(told(f"by shape, {most}", by_shape(shapes, most, 512 * 512 * 3 + 640 * 480 * 3)))


def compare(tars: list[str], model: str, most: int) -> None:
    """Label photos in both orders."""
    from diffseg import DiffSeg

    segmenter = DiffSeg.from_pretrained(model, device="cpu", batch_size=most)
    decoded = (decode_sample(raw, READER, 1024) for shard in shards.pin(tars) for raw in read_shard(shard))
    images = [segmenter.prepare(each.image) for each in decoded if isinstance(each, ImageSample)]
    shapes = [image.shape for image in images]
    labels = []
    for passes in (in_plain_order(shapes, most), by_shape(shapes, most, 1 << 20)):
        say(told(f"{most} a pass", passes))
        found = {
            i: each
            for batch in passes
            for i, each in zip(batch, segmenter.segment([images[i] for i in batch]), strict=True)
        }
        labels.append([found[i].label_map for i in range(len(images))])
    same = sum(int((one == other).sum()) for one, other in zip(*labels, strict=True))
    total = sum(one.size for one in labels[0])
    equal = sum(np.array_equal(one, other) for one, other in zip(*labels, strict=True))
    paired = np.mean([agreement(*pair) for pair in zip(*labels, strict=True)])
    say(f"{model}: {equal} of {len(images)} maps equal; ids {same / total:.4%}; segments paired {paired:.4%}")


def main() -> None:
    """Count, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="*")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    compare(given.shards, given.model, given.batch_size) if given.shards else count_passes()


if __name__ == "__main__":
    main()
