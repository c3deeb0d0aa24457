"""A pool of workers on Ray.

Ray restarts and retries nothing here: a lost actor is a value for the driver, which alone decides.
"""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.actor.cluster import Cluster, first_line
from pipeline.actor.label import LabelActor
from pipeline.config import Device
from pipeline.errors import ConfigError
from pipeline.pool import end_of
from pipeline.records import Outcome
from pipeline.staff import STALL_S, Desk, Staff
from pipeline.station import DRAINED, Report
from pipeline.worker import Worker, WorkerSettings, build_worker

LOOK_S = 2.0  # between two looks at the cluster's nodes
EXCHANGE_S = 1.0  # an actor answers at least this often: one small call a second and worker


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
        answered, silent = self._answers()
        outcomes: list[Outcome] = []
        for answer in answered:
            outcomes += self._note(self._asked.pop(answer), answer)
        for answer in silent:
            if self._asked[answer].hangs(None, self._stall_s):
                outcomes += self._replace(self._asked[answer], "no answer")
        return outcomes

    def _answers(self) -> tuple[list[Any], list[Any]]:
        """All that have come once the first has, and the rest: a round costs as much as there are workers."""
        asked = list(self._asked)
        if not asked or not ray.wait(asked, num_returns=1, timeout=EXCHANGE_S)[0]:
            return [], asked
        return ray.wait(asked, num_returns=len(asked), timeout=0)

    def _note(self, desk: Desk, answer: Any) -> list[Outcome]:
        try:
            report: Report = ray.get(answer)
        except RayError as error:
            return self._replace(desk, f"{type(error).__name__}: {first_line(error)}")
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
