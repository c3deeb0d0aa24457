"""The main job, step by step: pin the input, load the model, open the run, label what is missing, prove it complete."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from diffseg.config import SegmentConfig
from pipeline.config import RunConfig
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool, Pool
from pipeline.driver.progress import Counters, Figures, Progress, RollUp, Snapshot
from pipeline.errors import under_way
from pipeline.inputs import shards
from pipeline.inputs.tasks import DrawnWindows, draw_sample, split, within
from pipeline.logs.context import bound, owner
from pipeline.logs.text import redacted
from pipeline.messages import ShardFailure, ShardTask
from pipeline.records import Shard
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import Totals, declared, total, write_manifest
from pipeline.run.open import existing_run, keep_run, reader_of
from pipeline.run.spec import WINDOW, Run
from pipeline.run.status import bytes_left
from pipeline.run.verify import audit
from pipeline.storage import retry
from pipeline.storage.url import stem
from pipeline.worker.build import WorkerSettings, build_worker
from pipeline.worker.device_errors import loading_errors
from pipeline.worker.worker import Worker

Build = Callable[[WorkerSettings], Worker]
Publish = Callable[[Snapshot, Counters], None]  # exports the metrics of a moment
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of labelling a run. idle: nothing was left to do. faults: why the run is not complete."""

    output: str
    totals: Totals
    faults: tuple[str, ...]
    broken: tuple[ShardFailure, ...] = ()
    last: Snapshot | None = None
    idle: bool = False
    sampled: bool = False  # only the windows of a sample were asked for: that others are missing is no fault


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that tell the caller of events. opened: the run is open, before work begins; tick: about once a second;
    note: a line for people, such as an input that is left out or a Ray that was restarted.
    """

    opened: Callable[[Ledger], None] = lambda ledger: None
    tick: Callable[[Snapshot], None] = lambda snapshot: None
    note: Callable[[str], None] = lambda line: None


def label(
    patterns: Sequence[str],
    output: str,
    model: str,
    segment: SegmentConfig,
    run: RunConfig,
    *,
    extend: bool = False,
    retry_failed: bool = False,
    sample: int | None = None,
    seed: int = 0,
    hooks: Hooks | None = None,
) -> Summary:
    """Label shards into an output folder, or finish the run that it holds.

    extend: add shards that the run does not have yet. retry_failed: label windows again that have rows without labels.
    sample: label only about so many images, in whole windows drawn by seed.

    Raises ConfigError before any worker starts where an argument is wrong or does not fit the run; Stopped or another
    PipelineError where the run cannot go on. In every case committed windows stay, and the same call resumes.
    """
    hooks = hooks or Hooks()
    pinned = shards.pin(patterns, reader_of(output), hooks.note)
    ledger = open_run(pinned, output, model, segment, run, extend=extend)
    hooks.opened(ledger)
    return finish(ledger, model, run, retry_failed=retry_failed, sample=sample, seed=seed, hooks=hooks)


def finish(
    ledger: Ledger,
    model: str,
    run: RunConfig,
    *,
    retry_failed: bool = False,
    sample: int | None = None,
    seed: int = 0,
    hooks: Hooks | None = None,
    build: Build = build_worker,
) -> Summary:
    """Label what is missing of an opened run, then prove it complete. build: makes a worker; the rest as in `label`."""
    with _context_of(ledger):
        states = ledger.states()
        (complete, changed), left_bytes = declared(ledger, states), bytes_left(ledger, states)
        failed = ledger.failed(states) if retry_failed else []
        missing: Iterable[ShardTask] = () if complete else ledger.unfinished(states)
        drawn = _drawn(ledger, sample, seed) if sample else None
        if drawn:
            missing, left_bytes = within(missing, drawn.windows), drawn.bytes
        tasks = chain(missing, failed)
        first = next(tasks, None)
        if complete and first is None and not changed:
            return Summary(str(ledger), complete, (), idle=True)
        driver = _Driver(ledger, model, run, hooks or Hooks(), build, left_bytes, whole=not drawn)
        if first is not None:
            driver.label(chain([first], tasks))
        with under_way():
            checked = list(audit(ledger, rows=changed))  # lists again: it proves what is on storage now
        if lost := [task for shard in checked if shard.shard.id not in driver.counters.broken for task in shard.lost]:
            driver.label(lost)  # the listing of a resume does not show that the last window of a finished shard is gone
            checked = list(audit(ledger, rows=changed))
        broken = tuple(driver.counters.broken.values())
        if drawn:
            return Summary(str(ledger), total(checked), (), broken, driver.last, idle=first is None, sampled=True)
        faults = tuple(str(fault) for shard in checked for fault in shard.faults)
        with under_way():
            totals = total(checked) if faults else write_manifest(ledger, checked)
        return Summary(str(ledger), totals, faults, broken, driver.last)


@contextmanager
def _context_of(ledger: Ledger) -> Iterator[None]:
    """Log records and metrics made in the block say of which run they are."""
    url = ledger.store.url
    name = f"{stem(url)}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}"
    with bound(run=name, model=ledger.run.model, owner=owner()):
        logger.info("%s, of %s, with model %s", url, owner(), ledger.run.model)
        yield


class _Driver:
    """This process as the driver of a run. counters, last: what came back so far, and the last moment it showed.

    left_bytes: of the input. whole: shards of which a task is labelled are read to their end.
    """

    def __init__(
        self, ledger: Ledger, model: str, run: RunConfig, hooks: Hooks, build: Build, left_bytes: int, *, whole: bool
    ) -> None:
        self.counters = Counters()
        self.last: Snapshot | None = None
        self._ledger, self._run, self._hooks, self._build = ledger, run, hooks, build
        self._left_bytes, self._whole = left_bytes, whole
        keep = run.quarantine_bytes == "all"
        self._settings = WorkerSettings(ledger.store.url, model, run.batch_size, ledger.store.create_only, keep)
        self._progress, self._roll_up = Progress(left_bytes), RollUp(ledger)

    def label(self, tasks: Iterable[ShardTask]) -> None:
        """Have tasks labelled by workers that are started for them, and stopped whatever happens."""
        ledger, run = self._ledger, self._run
        with _pool(self._settings, run, self._left_bytes, self._build, self._hooks.note) as (pool, publish):

            def tick() -> None:
                moment = self._snapshot()
                if self._roll_up.write(moment):
                    keep_run(ledger.store, ledger.run)
                publish(moment, self.counters)
                self._hooks.tick(moment)

            try:
                drive(
                    ledger,
                    pool,
                    split(tasks, pool.workers, ledger.run.window),
                    self.counters,
                    max_attempts=run.max_attempts,
                    finish=self._whole,
                    silence_s=run.stall,
                    tick=tick,
                )
            finally:
                self.last = self._snapshot()
                self._roll_up.write(self.last, last=True)

    def _snapshot(self) -> Snapshot:
        return self._progress.snapshot(self.counters, retry.retries())


def open_run(
    pinned: Sequence[Shard],
    output: str,
    model: str,
    segment: SegmentConfig,
    run: RunConfig,
    *,
    extend: bool = False,
) -> Ledger:
    """Resolve the configuration with the model's defaults, and begin or join the run. Raises ConfigError."""
    from diffseg.models.fetch import fetch
    from diffseg.models.load import check
    from diffseg.models.recognise import recognise

    with loading_errors():
        files = fetch(model)
        resolved = segment.resolve(recognise(files))
        existing = existing_run(output)
        if not existing or existing.reader == 1:  # a newer run checked these files, by their hash, when it began
            check(files, resolved.words or ())
    wanted = Run.of(
        resolved,
        files.sha256,
        model=redacted(files.name),
        revision=files.revision,
        licence=files.licence,
        window=run.window or WINDOW,
        image_key=run.image_key,
        also=run.also,
        keep=run.keep,
        reader=pinned[0].reader,
    )
    return Ledger.start(output, wanted, pinned, extend=extend, any_window=run.window is None)


@contextmanager
def _pool(
    settings: WorkerSettings, run: RunConfig, left_bytes: int, build: Build, note: Callable[[str], None]
) -> Iterator[tuple[Pool, Publish]]:
    """The workers, and the function that exports their metrics; every worker is stopped at the end."""
    if run.workers == 0:
        local = LocalPool(lambda: build(settings))
        try:
            yield local, lambda snapshot, counters: None
        finally:
            local.close()
        return
    from pipeline.cluster import Cluster, RayPool

    with Cluster(run.ray_address, note, run.stall) as cluster:
        pool = RayPool(cluster, settings, run.workers, build=build, device=run.device)
        figures = Figures(left_bytes, run.price)
        try:
            yield pool, lambda moment, counters: cluster.show(figures.at(moment, counters), counters.failures)
        finally:
            pool.close()


def _drawn(ledger: Ledger, images: int, seed: int) -> DrawnWindows | None:
    run = ledger.run
    return draw_sample(list(ledger.shards.values()), images, seed, window=run.window, image_key=run.image_key)
