"""A labelling job that benches run: the engine as it is, over photos of the demo, with a fake model or a real one."""

import atexit
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg.config import ResolvedConfig, SegmentConfig
from pipeline import labelling
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.faulty_storage import FaultyStorage
from pipeline.config import RunConfig
from pipeline.inputs import shards
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.storage import retry
from pipeline.storage.object_store import Store
from pipeline.worker.build import Observe, WorkerSettings, build_worker
from pipeline.worker.worker import Worker

DEMO = Path(str(files("jobs") / "photos"))  # every photo is one of them, shifted and perhaps mirrored
PHOTOS = "photos"
FAKE = "fake"  # the name of the fake model in run.json


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """What is labelled, by how many workers, how fast, and what share of storage requests fails."""

    photos: tuple[str, ...]
    output: str
    workers: int
    window: int
    model: str | None = None  # None: the fake one
    seconds: float = 0.02  # of the fake model, an image
    batch_size: int = 8
    ray_address: str | None = None
    storage_faults: float = 0.0  # share of requests
    outage_s: float = 0.0
    seed: int = 0

    def to_json(self) -> str:
        """One line, which `documents.from_json` reads: another process can run the job with it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Build:
    """Makes a worker of a job in its process. observe: makes what is told of the worker's windows."""

    job: BenchJob
    observe: Observe | None = None

    def __call__(self, settings: WorkerSettings) -> Worker:
        """Break the storage of this process as the job wants it, until the process ends, and load the model."""
        atexit.register(faulty_storage(self.job).close)
        if self.job.model:
            return build_worker(settings, self.observe)
        ledger, fake = settings.open_ledger(), FakeSegmenter(self.job.seconds, self.job.batch_size)
        return Worker(ledger, fake, observer=self.observe(ledger) if self.observe else None)


def faulty_storage(job: BenchJob) -> ExitStack:
    """Have the storage of this process fail as the job wants it, until the stack is closed or dropped.

    Each process draws faults of its own.
    """
    stack = ExitStack()
    if job.storage_faults:
        own = int(np.random.default_rng().integers(1 << 32))
        stack.enter_context(retry.sent_by(FaultyStorage(job.storage_faults, job.seed ^ own, job.outage_s)))
    return stack


def open_job(job: BenchJob) -> Ledger:
    """Begin the run of a job, or join it. Raises ConfigError."""
    pinned = shards.pin(job.photos)
    if job.model:
        return labelling.open_run(pinned, job.output, job.model, SegmentConfig(), RunConfig(window=job.window))
    segment = ResolvedConfig(thresholds=(1.0,), timestep=0, image_size=512, output_size="source", dtype="float32")
    made = Run.of(segment, "", model=FAKE, revision=None, window=job.window)
    return Ledger.start(job.output, made, pinned)


def run_job(job: BenchJob, observe: Observe | None = None) -> labelling.Summary:
    """Drive a job to its end. observe: see Build."""
    run = RunConfig(
        workers=job.workers,
        ray_address=job.ray_address,
        batch_size=job.batch_size if job.model else None,
        device="auto" if job.model else "cpu",
    )
    with faulty_storage(job):
        return labelling.finish(open_job(job), job.model or FAKE, run, build=Build(job, observe))


def write_photos(output: str, count: int, images: int, size: tuple[int, int], seed: int) -> tuple[str, ...]:
    """Write shards of JPEGs below an output: equal bytes for equal seeds. size: height and width.

    Returns their URLs.
    """
    store = Store(output)
    loaded = demo_photos(size)
    drawn = [loaded[i] for i in np.random.default_rng(seed).permutation(len(loaded))]
    names = [f"{PHOTOS}/p-{number:05d}.tar" for number in range(count)]
    for number, name in enumerate(names):
        own = range(number * images, (number + 1) * images)
        store.put_new(name, write_samples((f"{photo:08d}", {"jpg": _jpeg(drawn, photo)}) for photo in own))
    return tuple(f"{store}/{name}" for name in names)


def demo_photos(size: tuple[int, int]) -> list[np.ndarray]:
    """The photos that the package brings. size: height and width."""
    return [np.asarray(Image.open(path).convert("RGB").resize(size[::-1])) for path in sorted(DEMO.glob("*.jpg"))]


def _jpeg(photos: Sequence[np.ndarray], number: int) -> bytes:
    photo = photos[number % len(photos)]
    turned, shift = photo[:, :: -1 if number // len(photos) % 2 else 1], number // len(photos) // 2
    buffer = io.BytesIO()
    Image.fromarray(np.roll(turned, shift, (0, 1))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
