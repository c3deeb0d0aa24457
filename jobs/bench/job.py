"""`diffseg bench job`: the engine against the bare loop of the same fake model."""

import tempfile
from time import perf_counter, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.bench.job import BenchJob

PHOTO = (321, 481)  # height and width, as those of BSDS
BARE_IMAGES = 100  # of the bare loop


def job(
    seconds: Annotated[
        list[float] | None, typer.Option(help="Of the fake model, an image; default: 0.02 and 0.005.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1)] = 24,
    images: Annotated[int, typer.Option(min=1, help="Of a shard.")] = 100,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    window: Annotated[int, typer.Option(min=1, help="Samples a commit.")] = 1024,
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
            found.append(measure(bench_job, images * shards))
            if not json:
                show(found[-1])
    if json:
        console.say_json(found)


def measure(job: "BenchJob", images: int) -> dict[str, Any]:
    """One run, from the first batch to the last commit, and the bare loop of one worker.

    efficiency: of `workers` bare loops. waited_ms, cpu_ms: of a worker, an image. cores: busy, of all workers.
    """
    from pipeline.bench.job import TimeRecorder, recorded_times, run_job
    from pipeline.run.ledger import Ledger

    alone = bare(job)
    began = time()
    summary = run_job(job, TimeRecorder)
    if summary.totals.rows != images or summary.faults:
        raise RuntimeError(f"{summary.totals.rows} rows of {images} images, {summary.faults}")
    notes = [note for note in recorded_times(Ledger.open(job.output)) if note.rows]
    first, last = min(note.began for note in notes), max(note.ended for note in notes)
    rate = images / (last - first)
    waited, cpu = ([getattr(note, name) for note in notes] for name in ("waited_s", "cpu_s"))
    return {
        "seconds": job.seconds,  # of the fake model, an image
        "images": images,
        "workers": job.workers,
        "start_s": first - began,
        "images_per_s": rate,
        "bare_images_per_s": alone,
        "efficiency": rate / (job.workers * alone),
        "waited_ms": _by_image(waited, images),
        "cpu_ms": _by_image(cpu, images),
        "cores": sum(sum(each.values()) for each in cpu) / (last - first),
    }


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


def show(speed: dict[str, Any]) -> None:
    """A few lines for people."""
    waited, cpu = (
        ", ".join(f"{stage} {ms:.2f}" for stage, ms in speed[name].items()) for name in ("waited_ms", "cpu_ms")
    )
    console.say(
        f"fake model at {1e3 * speed['seconds']:g} ms an image, {speed['images']:,} photos, {speed['workers']} workers:"
        f" {speed['images_per_s']:.1f} images/s = {speed['efficiency']:.3f} x {speed['workers']} x "
        f"{speed['bare_images_per_s']:.1f}"
    )
    console.say(f"  start-up, not counted: {speed['start_s']:.1f} s")
    console.say(f"  a worker waited, ms an image: {waited}")
    console.say(f"  processor, ms an image: {cpu}; {speed['cores']:.2f} cores busy of all workers")


def _by_image(notes: "list[dict[str, float]]", images: int) -> dict[str, float]:
    return {stage: 1e3 * sum(note.get(stage, 0.0) for note in notes) / images for stage in notes[0]}
