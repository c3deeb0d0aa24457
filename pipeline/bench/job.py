"""A labelling job that benches run: the engine as it is, over generated photos, with a fake model or a real one.

A trial is told as JSON, so that a driver in another process, started again and again, does the same.
"""

import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from diffseg.config import SegmentConfig
from diffseg.scenes.scene import draw_scene
from pipeline import labelling
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.bench.faulty_storage import FaultyStorage, breaking
from pipeline.config import RunConfig
from pipeline.inputs import shards
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store
from pipeline.worker.build import WorkerSettings, build_worker
from pipeline.worker.labeling import Segmenter
from pipeline.worker.worker import Worker

SCENES = 8  # drawn; every photo is one of them, shifted and perhaps mirrored, and no two are alike
PHOTOS = "photos"
FAKE = "fake"  # what such a run says of its model


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """What is labelled, by whom, how fast, and how much of its storage's answers are faults."""

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

    @classmethod
    def from_json(cls, said: str) -> "BenchJob":
        """What `to_json` wrote."""
        values = json.loads(said)
        return cls(**{**values, "photos": tuple(values["photos"])})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Build:
    """Makes a worker of a trial in its process. kind: a Worker that tells more than others."""

    trial: BenchJob
    kind: type[Worker] = Worker

    def __call__(self, settings: WorkerSettings) -> Worker:
        """Break the storage of this process as the trial wants it, and load the model."""
        break_storage(self.trial, ExitStack())
        if self.trial.model:
            return build_worker(settings, self.kind)
        ledger = Ledger.open(settings.output)
        ledger.store.create_only = settings.create_only
        fake: Segmenter = FakeSegmenter(self.trial.seconds, self.trial.batch_size)
        return self.kind(ledger, fake)


def break_storage(trial: BenchJob, until: ExitStack) -> None:
    """Have this process' storage fail until the stack is closed; each process by luck of its own."""
    if trial.storage_faults:
        luck = int(np.random.default_rng().integers(1 << 32))
        until.enter_context(breaking(FaultyStorage(trial.storage_faults, trial.seed ^ luck, trial.outage_s)))


def open_job(trial: BenchJob) -> Ledger:
    """Begin the run of a trial, or join it. Raises ConfigError."""
    pinned = shards.pin(trial.photos)
    if trial.model:
        return labelling.open_run(pinned, trial.output, trial.model, SegmentConfig(), RunConfig(window=trial.window))
    made = Run.of(SegmentConfig(thresholds=(1.0,)), "", model=FAKE, revision=None, window=trial.window)
    return Ledger.start(trial.output, made, pinned)


def run_job(trial: BenchJob, kind: type[Worker] = Worker, hooks: labelling.Hooks | None = None) -> labelling.Summary:
    """Be the driver of a trial to its end."""
    with ExitStack() as sound_again:
        break_storage(trial, sound_again)
        run = RunConfig(
            workers=trial.workers,
            ray_address=trial.ray_address,
            batch_size=trial.batch_size if trial.model else None,
            device="auto" if trial.model else "cpu",
        )
        return labelling.finish(open_job(trial), trial.model or FAKE, run, hooks=hooks, build=Build(trial, kind))


def write_photos(output: str, count: int, images: int, size: tuple[int, int], seed: int) -> tuple[str, ...]:
    """Shards of generated JPEGs below an output, the same for the same seed; their URLs. size: height and width."""
    store = Store(output)
    random = np.random.default_rng(seed)
    scenes = [draw_scene(random, size).image for _ in range(SCENES)]
    names = [f"{PHOTOS}/p-{number:05d}.tar" for number in range(count)]
    for number, name in enumerate(names):
        store.put_new(name, write_samples(_samples(scenes, number * images, images)))
    return tuple(f"{store}/{name}" for name in names)


def _samples(scenes: Sequence[np.ndarray], first: int, count: int) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"{number:08d}", {"jpg": _jpeg(scenes, number)}) for number in range(first, first + count)]


def _jpeg(scenes: Sequence[np.ndarray], number: int) -> bytes:
    scene = scenes[number % len(scenes)]
    turned, shift = scene[:, :: -1 if number // len(scenes) % 2 else 1], number // len(scenes) // 2
    buffer = io.BytesIO()
    Image.fromarray(np.roll(turned, shift, (0, 1))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
