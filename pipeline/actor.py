"""Workers as Ray actors, one a GPU (or a CPU share where there are none). The only file of the engine that knows Ray.

Ray restarts and retries nothing here: a lost actor is a value for the driver, which alone decides.
"""

import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; CPU actors see no GPU either way

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError, WorkerLost
from pipeline.meter import Meter
from pipeline.metrics import WorkerMetrics
from pipeline.pool import STALL_S, Desk, FalseStarts, Report, Station, hung
from pipeline.records import Outcome, ShardTask
from pipeline.worker import Worker, WorkerSettings, build_worker

T = TypeVar("T")
R = TypeVar("R")
TASK_RETRIES = 3  # of `Cluster.map`: nothing it computes is committed twice, so Ray may do this by itself
EXCHANGE_S = 1.0  # an actor answers at least this often: one small call a second and worker


class LabelActor:
    """One process that labels: a station that Ray can reach."""

    def __init__(self, settings: WorkerSettings, build: Callable[[WorkerSettings], Worker] = build_worker) -> None:
        self._meter: Meter | None = None  # of the worker, once there is one
        self._metrics = WorkerMetrics()

        def built() -> Worker:
            worker = build(settings)
            self._meter = worker.meter
            return worker

        self._station = Station(built)
        signal.signal(signal.SIGTERM, lambda *_: self._station.drain())

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """See Station.exchange."""
        report = self._station.exchange(tasks, wait_s)
        if self._meter:
            self._metrics.publish(self._meter.read())
        return report


class Cluster:
    """A Ray to run on: one that is there (address or RAY_ADDRESS), else a private one for the time of the `with`."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._folder: str | None = None

    def __enter__(self) -> "Cluster":
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self._address:
            try:
                ray.init(address=self._address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray at {self._address}: {str(error).splitlines()[0]}") from error
        else:
            self._folder = tempfile.mkdtemp(prefix="diffseg-ray-")
            ray.init(address="local", include_dashboard=False, _temp_dir=self._folder, **quiet)
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def map(self, function: Callable[[T], R], items: Iterable[T], *, in_flight: int | None = None) -> Iterator[R]:
        """function(item) for every item, in order, on the CPUs of the cluster; at most in_flight items are out at once.

        function, items and results travel by pickle. An item whose process died is tried again, TASK_RETRIES times;
        what function raises is raised here. in_flight: twice the CPUs where it is not given.
        Raises WorkerLost where processes keep dying.
        """
        task = ray.remote(function).options(num_cpus=1, max_retries=TASK_RETRIES, retry_exceptions=False)
        room = in_flight or 2 * self.cpus
        out: deque[Any] = deque()
        try:
            for item in items:
                if len(out) >= room:
                    yield _result(out.popleft())
                out.append(task.remote(item))
            while out:
                yield _result(out.popleft())
        finally:
            for reference in out:  # the caller has had enough
                ray.cancel(reference, force=True)

    @property
    def gpus(self) -> int:
        """GPUs of the cluster now."""
        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def cpus(self) -> int:
        """CPUs of the cluster now."""
        return int(ray.cluster_resources().get("CPU", 1))


class RayPool:
    """One actor a worker; a dead one is replaced."""

    def __init__(
        self,
        cluster: Cluster,
        settings: WorkerSettings,
        workers: int | None = None,
        actor_class: type[LabelActor] = LabelActor,
        build: Callable[[WorkerSettings], Worker] = build_worker,
        stall_s: float = STALL_S,
    ) -> None:
        self._stall_s = stall_s
        gpus = cluster.gpus
        self.workers = workers or gpus or cluster.cpus
        if gpus and self.workers > gpus:
            raise ConfigError(f"{self.workers} workers asked for, the cluster has {gpus} GPUs: one worker a GPU")
        share: dict[str, Any] = (
            {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": min(1, cluster.cpus / self.workers)}
        )
        self._actor = ray.remote(actor_class).options(max_restarts=0, max_task_retries=0, **share)
        self._settings, self._build = settings, build
        self._starts = FalseStarts()
        self._gone = 0
        self._made = 0
        self._desks: dict[Any, tuple[Desk, Any]] = {}  # by the answer that is awaited
        for _ in range(self.workers):
            self._spawn()

    @property
    def labelled(self) -> int:
        """Samples labelled so far, committed or not."""
        return self._gone + sum(desk.labelled for desk, _ in self._desks.values())

    @property
    def ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(desk.ready for desk, _ in self._desks.values())

    def free(self) -> int:
        """How many more tasks can be handed over now."""
        return sum(desk.free() for desk, _ in self._desks.values())

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(not desk.held for desk, _ in self._desks.values())

    def submit(self, task: ShardTask) -> None:
        """Hand a task to the worker that holds least, one that is ready if there is any such."""
        desks = [desk for desk, _ in self._desks.values()]
        max(desks, key=lambda desk: (desk.free(), desk.ready)).give(task)

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most."""
        answered, silent = ray.wait(list(self._desks), num_returns=1, timeout=EXCHANGE_S)
        outcomes: list[Outcome] = []
        for answer in answered:
            desk, actor = self._desks.pop(answer)
            try:
                report: Report = ray.get(answer)
            except RayError as error:
                outcomes += self._replace(desk, actor, f"{type(error).__name__}: {_first_line(error)}")
                continue
            outcomes += desk.take(report)
            if report.ended is not None:
                outcomes += self._replace(desk, actor, report.ended, report.hopeless)
            elif desk.hangs(report, self._stall_s):
                outcomes += self._replace(desk, actor, hung(report.still_s))
            else:
                self._ask(desk, actor)
        for answer in silent:
            desk, actor = self._desks[answer]
            if desk.hangs(None, self._stall_s):
                del self._desks[answer]
                outcomes += self._replace(desk, actor, "no answer")
        return outcomes

    def _replace(self, desk: Desk, actor: Any, reason: str, hopeless: bool = False) -> list[Outcome]:
        """A worker is gone, or must go: what it held comes back, and another takes its place."""
        ray.kill(actor)
        self._gone += desk.labelled
        lost = desk.lose(reason)
        self._starts.note(desk, reason, hopeless)
        self._spawn()
        return lost

    def close(self) -> None:
        """Kill every actor; what was not committed is labelled again by whoever resumes."""
        for _, actor in self._desks.values():
            ray.kill(actor)
        self._desks.clear()

    def _spawn(self) -> None:
        desk = Desk(f"worker {self._made}")
        self._made += 1
        self._ask(desk, self._actor.remote(self._settings, self._build))

    def _ask(self, desk: Desk, actor: Any) -> None:
        self._desks[actor.exchange.remote(desk.send(), EXCHANGE_S)] = (desk, actor)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise WorkerLost(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
