"""A pool of workers on Ray, each in an actor of its own.

Ray restarts and retries nothing here: a dead actor is a value for the driver, which alone decides.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import cloudpickle

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.messages import ActorSpec
from pipeline.config import Device
from pipeline.driver.pool import Capacity
from pipeline.errors import ConfigError, RayLost
from pipeline.messages import Orders, WorkerEnd
from pipeline.worker.build import WorkerSettings, build_worker
from pipeline.worker.host import Report
from pipeline.worker.worker import Worker


class RayPool:
    """Workers on a cluster. workers: as many; None: as many as there is room for, now and where the cluster grows.

    Raises ConfigError where this machine has fewer GPUs than workers were asked for.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: WorkerSettings,
        workers: int | None = None,
        build: Callable[[WorkerSettings], Worker] = build_worker,
        device: Device = "auto",
    ) -> None:
        self._cluster = cluster
        self._on_gpu = bool(cluster.gpus) if device == "auto" else device == "gpu"
        self._made: bytes = cloudpickle.dumps((replace(settings, gpu=self._on_gpu), build))
        self._asked_for = workers
        self.workers = workers or self._room()
        if self._on_gpu and cluster.is_private and self.workers > cluster.gpus:
            raise ConfigError(
                f"{self.workers} workers asked for, this machine has {cluster.gpus} GPUs: one worker a GPU"
            )
        self._share: dict[str, Any] = (
            {"num_gpus": 1, "num_cpus": 1} if self._on_gpu else {"num_cpus": min(1, cluster.cpus / self.workers)}
        )

    def capacity(self) -> Capacity:
        """See Pool.capacity."""
        state = self._cluster.look()
        return Capacity(self._asked_for or self._room(), state.nodes, state.draining)

    def exchange(self, orders: Orders) -> Mapping[str, Report | WorkerEnd]:
        """See Pool.exchange."""
        blocked = ",".join(sorted(orders.blocked_nodes))
        where = {"label_selector": {"ray.io/node-id": f"!in({blocked})"}} if blocked else {}
        return self._cluster.exchange(orders, ActorSpec(self._made, self._share | where) if orders.start else None)

    def restart(self, lost: RayLost) -> None:
        """See Pool.restart. A cluster is not started again, a private Ray only so many times."""
        self._cluster.restart(lost)

    def close(self) -> None:
        """See Pool.close."""
        with suppress(RayLost):
            self._cluster.call("kill_all")

    def _room(self) -> int:
        return max(1, self._cluster.gpus if self._on_gpu else self._cluster.cpus)
