"""Write the reporting scenes as one WebDataset shard, picture and truth of each: python write_scenes.py scenes.tar."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.scenes.scene import benchmark
from pipeline.inputs.tar.writing import write_samples
from pipeline.table.label_map import encode_label_map


def main(output: Path, count: int = 200) -> None:
    """The same bytes on every machine: scenes are seeded, tars are written without times and owners."""
    scenes = enumerate(benchmark(count))
    samples = ((f"{i:04d}", {"png": _png(s.image), "seg.png": encode_label_map(s.truth)}) for i, s in scenes)
    output.write_bytes(write_samples(samples))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
