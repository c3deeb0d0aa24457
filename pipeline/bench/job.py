"""A labelling job that benches run: the engine as it is, over photos of the demo, with a fake model or a real one."""

import atexit
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg.config import ResolvedConfig, SegmentConfig
from diffseg.draw import encoded
from pipeline import documents, labelling
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.faulty_storage import FaultyStorage
from pipeline.config import RunConfig
from pipeline.inputs import shards
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import Receipt, ShardTask
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.storage import retry
from pipeline.storage.object_store import Store
from pipeline.worker.build import Observe, WorkerSettings, build_worker
from pipeline.worker.stage_timer import MetricsSnapshot
from pipeline.worker.worker import Worker

DEMO = Path(str(files("jobs") / "photos"))  # every photo is one of them, shifted and perhaps mirrored
PHOTOS = "photos"
NOTES = "spent"  # folder of a run: <attempt id>.json
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
    return encoded(Image.fromarray(np.roll(turned, shift, (0, 1))), "JPEG", quality=90)


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """A worker's time. began: its first batch; ended: its last commit, both by the clock on the wall."""

    began: float
    ended: float
    rows: int
    busy_s: float
    waited_s: dict[str, float] = field(default_factory=dict)  # by stage, see `stage_timer`
    cpu_s: dict[str, float] = field(default_factory=dict)  # by stage, and `other`: Ray, heartbeats, the interpreter


class TimeRecorder:
    """A WorkerObserver that leaves a note of the worker's time with every window."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._began = 0.0
        self._cpu_before = time.process_time()  # loading and all

    def window_began(self, task: ShardTask, number: int) -> None:
        """The first one counts."""
        self._began = self._began or time.time()

    def window_committed(self, receipt: Receipt, snapshot: MetricsSnapshot) -> None:
        """Replace the note."""
        ended, rows = time.time(), snapshot.rows
        other = time.process_time() - self._cpu_before - sum(snapshot.cpu_s.values())
        cpu = {**snapshot.cpu_s, "other": other}
        note = WorkerTimes(self._began, ended, rows, snapshot.busy_s, dict(snapshot.waited_s), cpu)
        self._ledger.store.replace(f"{NOTES}/{self._ledger.writer.attempt}.json", documents.to_json(note))


def recorded_times(ledger: Ledger) -> list[WorkerTimes]:
    """The last note of every worker of a run."""
    return [documents.from_json(WorkerTimes, ledger.store.get(name)) for name, _ in ledger.store.list(f"{NOTES}/")]
