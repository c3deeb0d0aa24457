"""The labelling job that a user would write with Ray Data, over the photos and the fake model of `diffseg bench job`.

    python infra/benchmarks/engine/ray_data.py --seconds 0.005

It reads shards, labels in actors and writes Parquet; it needs `ray[data]`, which nothing else here does. It leaves out
resuming, retries, a row for what fails, and segments with boxes and areas of their own type.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.bench.job import PHOTO
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.job import write_photos
from pipeline.table.label_map import encode_label_map


class Labeller:
    """An actor that labels and encodes batches which Ray Data has decoded."""

    def __init__(self, seconds: float) -> None:
        self._segmenter = FakeSegmenter(seconds)
        self._first = 0.0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of a batch, with the time at which its actor began."""
        self._first = self._first or time.time()
        results = self._segmenter.segment(list(batch["jpg"]))
        return {
            "key": list(batch["__key__"]),
            "label_map": [encode_label_map(result.label_map) for result in results],
            "num_segments": [len(result.segments) for result in results],
            "began": [self._first] * len(results),
        }


def label(photos: str, output: str, seconds: float, workers: int, batch_size: int) -> dict[str, float]:
    """Label every `*.tar` of a folder; images/s from the first batch to the last file."""
    import ray
    import ray.data

    cpus = max(workers + 1, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.time()
    rows = ray.data.read_webdataset(photos, file_extensions=["tar"])
    labelled = rows.map_batches(
        Labeller, fn_constructor_args=(seconds,), batch_size=batch_size, concurrency=workers, num_cpus=1
    )
    labelled.write_parquet(output)
    ended = time.time()
    times = [row["began"] for row in ray.data.read_parquet(output).select_columns(["began"]).take_all()]
    first, count = min(times), len(times)
    ray.shutdown()
    return {"rows": count, "start_s": first - began, "seconds": ended - first, "images_per_s": count / (ended - first)}


def main() -> None:
    """Print the figures of a job as JSON; the defaults are those of `diffseg bench job`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.02, help="Of the fake model, an image.")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--images", type=int, default=100, help="Of a shard.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffseg-ray-data-") as folder:
        photos = write_photos(folder, given.shards, given.images, PHOTO, seed=0)
        where = str(Path(photos[0].removeprefix("file://")).parent)
        figures = label(where, f"{folder}/rows", given.seconds, given.workers, given.batch_size)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
