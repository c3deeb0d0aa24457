"""A pool of workers on Ray.

Ray restarts and retries nothing here: a lost actor is a value for the driver, which alone decides.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any

import cloudpickle

from pipeline.cluster.cluster import LOOK_S, Cluster
from pipeline.cluster.messages import Orders
from pipeline.config import Device
from pipeline.driver.pool import end_of
from pipeline.driver.workers import STALL_S, WorkerHandle, WorkerRegistry
from pipeline.errors import ConfigError, RayLost
from pipeline.messages import Outcome
from pipeline.watch import Watch
from pipeline.worker.build import WorkerSettings, build_worker
from pipeline.worker.host import DRAINED, Report
from pipeline.worker.worker import Worker


class RayPool:
    """One actor a worker. One that dies is replaced, one whose node is about to go is asked to leave, one that has had
    nothing to do gives its device back; where the cluster grows and `workers` was not given, so does the pool.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: WorkerSettings,
        workers: int | None = None,
        build: Callable[[WorkerSettings], Worker] = build_worker,
        stall_s: float = STALL_S,
        device: Device = "auto",
    ) -> None:
        self._cluster, self._stall_s = cluster, stall_s
        self._on_gpu = bool(cluster.gpus) if device == "auto" else device == "gpu"
        self._made: bytes = cloudpickle.dumps((replace(settings, gpu=self._on_gpu), build))
        self._grows = workers is None
        self.staff = WorkerRegistry(workers or self._room())
        if self._on_gpu and cluster.is_private and self.staff.size > cluster.gpus:
            raise ConfigError(
                f"{self.staff.size} workers asked for, this machine has {cluster.gpus} GPUs: one worker a GPU"
            )
        self._share: dict[str, Any] = (
            {"num_gpus": 1, "num_cpus": 1} if self._on_gpu else {"num_cpus": min(1, cluster.cpus / self.staff.size)}
        )
        self._watch = Watch(cluster.silence_s)
        self._asked: dict[str, WorkerHandle] = {}  # who owes an answer, by name
        self._orders = Orders()  # for the next round
        self._looked = monotonic()  # when the cluster's nodes were last looked at

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most; after some more where a private Ray had to be started again.

        Raises RayLost, Stopped where nothing moves, WorkerLost where no worker can start.
        """
        with self._watch:
            try:
                self._look_around()
                answers = self._cluster.exchange(self._next_orders())
            except RayLost as lost:
                return self._begin_again(lost)
            return self._noted(answers)

    def _noted(self, answers: Mapping[str, Report | str]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for name, answer in answers.items():
            outcomes += self._note(self._asked.pop(name), answer)
        patience = min(self._stall_s, self._watch.silence_s)
        for desk in [desk for desk in self._asked.values() if desk.hangs(None, patience)]:
            self._watch.moved(f"the end of {desk.name}, which did not answer")
            outcomes += self._replace(desk, "no answer")
        if not any(desk.held for desk in self._asked.values()):  # else they are replaced before all is given up
            told = f"workers asked for: {len(self._asked)}, ready: {self.staff.ready}, and no answer from any"
            self._watch.check(told)
        return outcomes

    def _next_orders(self) -> Orders:
        for desk in self.staff.surplus():
            self._end(desk)
            self.staff.dismiss(desk, DRAINED)
        for desk in self.staff.hire():
            self._orders.start[desk.name] = self._made, self._options()
        for desk in self.staff.desks:
            if desk.name not in self._asked and not desk.left_out:
                self._orders.ask[desk.name] = desk.send()
                self._asked[desk.name] = desk
        orders, self._orders = self._orders, Orders()
        return orders

    def _note(self, desk: WorkerHandle, answer: Report | str) -> list[Outcome]:
        self._watch.moved(f"of {desk.name}")
        if isinstance(answer, str):
            return self._replace(desk, answer)
        outcomes = self.staff.note(desk, answer)
        ended = end_of(desk, answer, self._stall_s)
        return outcomes if ended is None else outcomes + self._replace(desk, ended, answer.permanent)

    def _replace(self, desk: WorkerHandle, reason: str, permanent: bool = False) -> list[Outcome]:
        """A worker is gone, or must go: what it held comes back."""
        self._end(desk)
        return self.staff.dismiss(desk, reason, permanent)

    def _end(self, desk: WorkerHandle) -> None:
        self._orders.kill.append(desk.name)
        self._asked.pop(desk.name, None)

    def _begin_again(self, lost: RayLost) -> list[Outcome]:
        """All workers are gone through no fault of their own, and what they held comes back."""
        self._cluster.restart(lost)
        self._orders = Orders()
        self._asked.clear()
        self._watch.moved("a fresh Ray")
        return [outcome for desk in list(self.staff.desks) for outcome in self.staff.dismiss(desk, DRAINED)]

    def _options(self) -> dict[str, Any]:
        closed = ",".join(sorted(self.staff.blocked_nodes))
        where = {"label_selector": {"ray.io/node-id": f"!in({closed})"}} if closed else {}
        return {**self._share, **where}

    def _look_around(self) -> None:
        """Ask those to leave whose node is about to go, and see whether the cluster has grown."""
        if monotonic() < self._looked + LOOK_S:
            return
        self._looked = monotonic()
        seen = self._cluster.look()
        for desk in self.staff.desks:
            if desk.node in seen.draining and not desk.leaving:
                desk.leaving = True
                self._orders.drain[desk.name] = seen.draining[desk.node]
        for desk in [desk for desk in self.staff.desks if desk.left_out and desk.node not in seen.nodes]:
            self._end(desk)  # its device went with its node: another may take its place
            self.staff.dismiss(desk, DRAINED)
        if self._grows:
            self.staff.size = max(self.staff.size, self._room())

    def _room(self) -> int:
        return max(1, self._cluster.gpus if self._on_gpu else self._cluster.cpus)

    def close(self) -> None:
        """Kill every actor; what was not committed is labelled again by whoever resumes."""
        with suppress(RayLost):
            self._cluster.exchange(Orders(kill=self._orders.kill + [desk.name for desk in self.staff.desks]))
