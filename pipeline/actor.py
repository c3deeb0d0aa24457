"""Workers as Ray actors, one a GPU (or a CPU share where there are none). The only file of the engine that knows Ray.

Ray restarts and retries nothing here: a lost actor is a value for the driver, which alone decides.
"""

import math
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic, time
from typing import Any, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; CPU actors see no GPU either way

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import retrying
from pipeline.config import Device
from pipeline.errors import ConfigError, WorkerLost
from pipeline.meter import Meter
from pipeline.metrics import WorkerMetrics
from pipeline.pool import end_of
from pipeline.records import Outcome, ShardTask
from pipeline.staff import STALL_S, Desk, Staff
from pipeline.station import DRAINED, Report, Station
from pipeline.worker import Worker, WorkerSettings, build_worker

T = TypeVar("T")
R = TypeVar("R")
TASK_RETRIES = 3  # of `Cluster.map`: nothing it computes is committed twice, so Ray may do this by itself
NOTICE_S = 25.0  # that a worker takes itself to have after a SIGTERM: the shortest notice of a spot machine is 30
LOOK_S = 2.0  # between two looks at the cluster's nodes
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

        if not settings.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from an actor that asked for none
        self._place = ray.get_runtime_context().get_node_id()
        self._station = Station(built)
        signal.signal(signal.SIGTERM, lambda *_: self._station.drain(NOTICE_S))

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """See Station.exchange."""
        report = self._station.exchange(tasks, wait_s)
        if self._meter:
            self._metrics.publish(self._meter.read())
        return replace(report, place=self._place, retries=retrying.retries())

    def drain(self, seconds: float) -> None:
        """See Station.drain."""
        self._station.drain(seconds)


class Cluster:
    """A Ray to run on: one that is there (address or RAY_ADDRESS), else a private one for the time of the `with`."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._folder: str | None = None

    def __enter__(self) -> "Cluster":
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if self._address:
            try:
                ray.init(address=self._address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray at {self._address}: {str(error).splitlines()[0]}") from error
        else:
            self._folder = tempfile.mkdtemp(prefix="diffseg-ray-")
            ray.init(address="local", include_dashboard=False, _temp_dir=self._folder, **quiet)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the process with 15
        keep_stdout()
        return self

    @property
    def is_private(self) -> bool:
        """Whether it was started for this `with`: nothing will join it."""
        return self._address is None

    def nodes(self) -> set[str]:
        """Ids of the nodes that are alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def draining(self) -> dict[str, float]:
        """Nodes that are about to go, by id: seconds they have left, infinite where no deadline was given."""
        nodes = ray._private.state.state.get_draining_nodes()  # what Ray's own libraries ask; there is no public way
        return {node: due / 1000 - time() if due else math.inf for node, due in nodes.items()}

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
        task = ray.remote(lambda item: function(item)).options(
            num_cpus=1, max_retries=TASK_RETRIES, retry_exceptions=False
        )
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
    """One actor a worker. One that dies is replaced, one whose node is about to go is asked to leave, one that has had
    nothing to do gives its device back; where the cluster grows and `workers` was not given, so does the pool.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: WorkerSettings,
        workers: int | None = None,
        actor_class: type[LabelActor] = LabelActor,
        build: Callable[[WorkerSettings], Worker] = build_worker,
        stall_s: float = STALL_S,
        device: Device = "auto",
    ) -> None:
        self._cluster, self._stall_s, self._build = cluster, stall_s, build
        on_gpu = bool(cluster.gpus) if device == "auto" else device == "gpu"
        self._grows = workers is None
        self._settings = replace(settings, gpu=on_gpu)
        self.staff = Staff(workers or self._room())
        if on_gpu and cluster.is_private and self.staff.size > cluster.gpus:
            raise ConfigError(
                f"{self.staff.size} workers asked for, this machine has {cluster.gpus} GPUs: one worker a GPU"
            )
        self._actor = ray.remote(actor_class)
        self._share: dict[str, Any] = (
            {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": min(1, cluster.cpus / self.staff.size)}
        )
        self._actors: dict[Desk, Any] = {}
        self._asked: dict[Any, Desk] = {}  # by the answer that is awaited
        self._looked = monotonic()  # when the cluster's nodes were last looked at

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most."""
        self._look_around()
        for desk in self.staff.surplus():
            self._remove(desk)
            self.staff.dismiss(desk, DRAINED)
        for desk in self.staff.hire():
            self._actors[desk] = self._start()
        for desk in self._actors.keys() - set(self._asked.values()):
            if not desk.left_out:
                self._asked[self._actors[desk].exchange.remote(desk.send(), EXCHANGE_S)] = desk
        answered, silent = ray.wait(list(self._asked), num_returns=1, timeout=EXCHANGE_S) if self._asked else ([], [])
        outcomes: list[Outcome] = []
        for answer in answered:
            outcomes += self._note(self._asked.pop(answer), answer)
        for answer in silent:
            if self._asked[answer].hangs(None, self._stall_s):
                outcomes += self._replace(self._asked[answer], "no answer")
        return outcomes

    def _note(self, desk: Desk, answer: Any) -> list[Outcome]:
        try:
            report: Report = ray.get(answer)
        except RayError as error:
            return self._replace(desk, f"{type(error).__name__}: {_first_line(error)}")
        outcomes = self.staff.note(desk, report)
        ended = end_of(desk, report, self._stall_s)
        return outcomes if ended is None else outcomes + self._replace(desk, ended, report.hopeless)

    def _replace(self, desk: Desk, reason: str, hopeless: bool = False) -> list[Outcome]:
        """A worker is gone, or must go: what it held comes back."""
        self._remove(desk)
        return self.staff.dismiss(desk, reason, hopeless)

    def _remove(self, desk: Desk) -> None:
        ray.kill(self._actors.pop(desk))
        self._asked = {answer: other for answer, other in self._asked.items() if other is not desk}

    def _start(self) -> Any:
        closed = ",".join(sorted(self.staff.closed_places))
        where = {"label_selector": {"ray.io/node-id": f"!in({closed})"}} if closed else {}
        asked: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **self._share, **where}
        return self._actor.options(**asked).remote(self._settings, self._build)

    def _look_around(self) -> None:
        """Ask those to leave whose node is about to go, and see whether the cluster has grown."""
        if monotonic() < self._looked + LOOK_S:
            return
        self._looked = monotonic()
        going = self._cluster.draining()
        for desk, actor in self._actors.items():
            if desk.place in going and not desk.leaving:
                desk.leaving = True
                actor.drain.remote(going[desk.place])
        if any(desk.left_out for desk in self.staff.desks):
            there = self._cluster.nodes()
            for desk in [desk for desk in self.staff.desks if desk.left_out and desk.place not in there]:
                self._remove(desk)  # its device went with its node: another may take its place
                self.staff.dismiss(desk, DRAINED)
        if self._grows:
            self.staff.size = max(self.staff.size, self._room())

    def _room(self) -> int:
        return max(1, self._cluster.gpus if self._settings.gpu else self._cluster.cpus)

    def close(self) -> None:
        """Kill every actor; what was not committed is labelled again by whoever resumes."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._asked.clear()


def keep_stdout() -> None:
    """Ray tells of lost nodes on stdout, which belongs to results; it has no setting for it."""
    ray._private.worker._worker_logs_enabled = False


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise WorkerLost(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
