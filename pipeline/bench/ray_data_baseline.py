"""`python -m pipeline.bench.ray_data_baseline JOB`: the labelling job that a user would write with Ray Data.

It reads shards, labels in actors and writes Parquet; it needs `ray[data]`, which nothing else here does. It leaves out
resuming, retries, a row for what fails, and segments with boxes and areas of their own type.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import process
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.job import BenchJob
from pipeline.documents import from_json
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


def label(job: BenchJob) -> dict[str, float]:
    """Label every `*.tar` of the folder of the first shard; images/s from the first batch to the last file."""
    import ray
    import ray.data

    photos, output = str(Path(job.photos[0]).parent), f"{job.output}-ray-data"
    cpus = max(job.workers + 1, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.time()
    rows = ray.data.read_webdataset(photos, file_extensions=["tar"])
    labelled = rows.map_batches(
        Labeller, fn_constructor_args=(job.seconds,), batch_size=job.batch_size, concurrency=job.workers, num_cpus=1
    )
    labelled.write_parquet(output)
    ended = time.time()
    times = [row["began"] for row in ray.data.read_parquet(output).select_columns(["began"]).take_all()]
    first, count = min(times), len(times)
    ray.shutdown()
    return {"rows": count, "start_s": first - began, "seconds": ended - first, "images_per_s": count / (ended - first)}


def main() -> None:
    """Write the figures of a job, as one line of JSON."""
    sys.stdout.write(json.dumps(label(from_json(BenchJob, sys.argv[1]))) + "\n")


if __name__ == "__main__":
    process.run(main)
