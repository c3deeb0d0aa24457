"""`diffseg bench job`: the engine against the bare loop of the same fake model, and against a plain Ray Data job."""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from time import perf_counter, time
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.bench.job import BenchJob

PHOTO = (321, 481)  # height and width, as those of BSDS
BARE_IMAGES = 100  # of the bare loop
RAY_DATA_S = 1800.0  # for the Ray Data job, which has no time limit of its own


@dataclass(frozen=True)
class JobSpeed:
    """Images/s from the first batch to the last commit, and a worker's waiting and processor time an image."""

    seconds: float  # of the fake model, an image
    images: int
    workers: int
    start_s: float  # from the command to the first batch
    images_per_s: float
    bare_images_per_s: float  # of one worker
    efficiency: float  # images_per_s / (workers * bare_images_per_s)
    waited_ms: dict[str, float]
    cpu_ms: dict[str, float]
    cores: float  # of all workers
    ray_data_images_per_s: float | None = None
    ray_data_start_s: float | None = None
    times_ray_data: float | None = None


def job(
    seconds: Annotated[
        list[float] | None, typer.Option("--seconds", help="Of the fake model, an image; default: 0.02 and 0.005.")
    ] = None,
    shards: Annotated[int, typer.Option("--shards", min=1)] = 24,
    images: Annotated[int, typer.Option("--images", min=1, help="Of a shard.")] = 100,
    workers: Annotated[int, typer.Option("--workers", min=1)] = 2,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 8,
    window: Annotated[int, typer.Option("--window", min=1, help="Samples a commit.")] = 1024,
    ray_data: Annotated[
        bool, typer.Option("--ray-data/--no-ray-data", help="Do the same as a plain Ray Data job beside it.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Measure the engine with a fake model of a set speed: its share of workers times the bare model."""
    from pipeline.bench.job import BenchJob, write_photos

    found = []
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as folder:
        photos = write_photos(folder, shards, images, PHOTO, seed=0)
        for number, each in enumerate(seconds or (0.02, 0.005)):
            bench_job = BenchJob(
                photos=photos, output=f"{folder}/run-{number}", workers=workers, window=window, seconds=each,
                batch_size=batch_size,
            )  # fmt: skip
            found.append(measure(bench_job, images * shards, ray_data))
            if not json:
                show(found[-1])
    if json:
        console.say_json([asdict(speed) for speed in found])


def measure(job: "BenchJob", images: int, ray_data: bool) -> JobSpeed:
    """One run, the bare loop and, where it is wanted, the Ray Data job."""
    from pipeline.bench.job import run_job
    from pipeline.bench.time_recorder import TimeRecorder, recorded_times
    from pipeline.run.ledger import Ledger

    alone = bare(job)
    by_ray = by_ray_data(job) if ray_data else None
    began = time()
    summary = run_job(job, TimeRecorder)
    if summary.totals.rows != images or summary.faults:
        raise RuntimeError(f"{summary.totals.rows} rows of {images} images, {summary.faults}")
    notes = [note for note in recorded_times(Ledger.open(job.output)) if note.rows]
    first, last = min(note.began for note in notes), max(note.ended for note in notes)
    rate = images / (last - first)
    return JobSpeed(
        seconds=job.seconds,
        images=images,
        workers=job.workers,
        start_s=first - began,
        images_per_s=rate,
        bare_images_per_s=alone,
        efficiency=rate / (job.workers * alone),
        waited_ms=_by_image([note.waited_s for note in notes], images),
        cpu_ms=_by_image([note.cpu_s for note in notes], images),
        cores=sum(sum(note.cpu_s.values()) for note in notes) / (last - first),
        ray_data_images_per_s=by_ray["images_per_s"] if by_ray else None,
        ray_data_start_s=by_ray["start_s"] if by_ray else None,
        times_ray_data=rate / by_ray["images_per_s"] if by_ray else None,
    )


def bare(job: "BenchJob") -> float:
    """Images/s of the fake model in a loop over a batch of decoded images, which never waits."""
    from pipeline.bench.fake_model import FakeSegmenter
    from pipeline.inputs.decode import decode
    from pipeline.inputs.tar.reading import read_samples
    from pipeline.storage.object_store import Store

    model, batch = FakeSegmenter(job.seconds, job.batch_size), []
    folder, _, name = job.photos[0].rpartition("/")
    with Store(folder).reader(name) as stream:
        for sample in read_samples(stream, name):
            batch.append(decode(sample.members["jpg"]))
            if len(batch) == job.batch_size:
                break
    model.segment(batch)
    rounds = -(-BARE_IMAGES // len(batch))
    began = perf_counter()
    for _ in range(rounds):
        model.segment(batch)
    return rounds * len(batch) / (perf_counter() - began)


def by_ray_data(job: "BenchJob") -> dict[str, float] | None:
    """Figures of a plain Ray Data job over the same photos, in a process of its own; None where it cannot run."""
    import json

    from pipeline.cluster.process import session

    command = [sys.executable, "-m", "pipeline.bench.ray_data_baseline", job.to_json()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            found, errors = child.communicate(timeout=RAY_DATA_S)
        except subprocess.TimeoutExpired:
            found, errors = "", f"it was not done after {RAY_DATA_S:.0f} s"
        finally:
            session.end(child.pid, within=10.0)
    if child.returncode != 0:
        console.note(
            f"no plain Ray Data job beside it (it needs ray[data]): {(errors.strip() or 'no word').splitlines()[-1]}"
        )
        return None
    figures: dict[str, float] = json.loads(found.splitlines()[-1])
    return figures


def show(speed: JobSpeed) -> None:
    """A few lines for people."""
    console.say(
        f"fake model at {1e3 * speed.seconds:g} ms an image, {speed.images:,} photos, {speed.workers} workers: "
        f"{speed.images_per_s:.1f} images/s = {speed.efficiency:.3f} x {speed.workers} x {speed.bare_images_per_s:.1f}"
    )
    console.say(f"  start-up, not counted: {speed.start_s:.1f} s")
    waited = ", ".join(f"{stage} {ms:.2f}" for stage, ms in speed.waited_ms.items())
    console.say(f"  a worker waited, ms an image: {waited}")
    cpu = ", ".join(f"{stage} {ms:.2f}" for stage, ms in speed.cpu_ms.items())
    console.say(f"  processor, ms an image: {cpu}; {speed.cores:.2f} cores busy of all workers")
    if speed.times_ray_data:
        console.say(
            f"  the plain Ray Data job: {speed.ray_data_images_per_s:.1f} images/s "
            f"(start-up {speed.ray_data_start_s:.1f} s); ours is {speed.times_ray_data:.2f} times as fast"
        )


def _by_image(notes: "list[dict[str, float]]", images: int) -> dict[str, float]:
    return {stage: 1e3 * sum(note.get(stage, 0.0) for note in notes) / images for stage in notes[0]}
