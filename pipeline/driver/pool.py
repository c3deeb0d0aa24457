"""The seam between the driver and its workers: a pool carries orders out and brings answers back, and decides nothing.

`LocalPool` has its workers in threads of this process, `cluster.RayPool` each in an actor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import sleep
from typing import Protocol

from pipeline.errors import RayLost, Stopped
from pipeline.logs.context import bound
from pipeline.messages import Orders, WorkerEnd
from pipeline.worker.device_errors import device_answers
from pipeline.worker.host import Report, WorkerHost
from pipeline.worker.worker import Worker

ANSWER_S = 0.2  # in which workers in threads answer, all of them together


@dataclass(frozen=True, slots=True)
class Capacity:
    """Where workers can be now. workers: how many there is room for. draining: seconds left to nodes about to go."""

    workers: int
    nodes: frozenset[str] = frozenset({""})
    draining: Mapping[str, float] = field(default_factory=dict)


class Pool(Protocol):
    """Workers as the driver reaches them, each by its name."""

    @property
    def workers(self) -> int:
        """How many workers to begin with."""
        ...

    def capacity(self) -> Capacity:
        """Where workers can be now. Raises RayLost."""
        ...

    def exchange(self, orders: Orders) -> Mapping[str, Report | WorkerEnd]:
        """Carry orders out. The answers that have come, by worker, after a second at most; a dead worker has an end.

        A worker answers once for each time it is asked. Raises RayLost, Stopped where no worker can go on.
        """
        ...

    def restart(self, lost: RayLost) -> None:
        """Start again without workers, after Ray was lost. Raises RayLost where that is not possible."""
        ...

    def close(self) -> None:
        """Leave no worker behind. What was not committed is labelled again by whoever resumes."""
        ...


class LocalPool:
    """Workers in threads of this process: for tests, and for machines without Ray."""

    def __init__(self, build: Callable[[], Worker], workers: int = 1) -> None:
        self.workers = workers
        self._build = build
        self._hosts: dict[str, WorkerHost] = {}

    def capacity(self) -> Capacity:
        """As many workers as were asked for, on one node."""
        return Capacity(self.workers)

    def exchange(self, orders: Orders) -> Mapping[str, Report | WorkerEnd]:
        """See Pool.exchange. Raises Stopped where the device is lost to this process, and to every worker in it."""
        for name, reason in orders.stop.items():  # a thread cannot be killed: one that hangs is left behind
            self._hosts.pop(name).drain(0.0)
            _check_device(reason)
        for name in orders.start:
            with bound(worker=name):
                self._hosts[name] = WorkerHost(self._build)
        for name, seconds in orders.drain.items():
            self._hosts[name].drain(seconds)
        if not orders.ask:
            sleep(ANSWER_S)  # no worker can be started yet
        reports = {}
        for name, tasks in orders.ask.items():
            reports[name] = report = self._hosts[name].exchange(tasks, ANSWER_S / len(orders.ask))
            if report.end:
                _check_device(report.end.reason)
        return reports

    def restart(self, lost: RayLost) -> None:
        """Not possible: workers in threads need no Ray."""
        raise lost

    def close(self) -> None:
        """End the workers; nobody waits for what they are working on."""
        for host in self._hosts.values():
            host.drain(0.0)


def _check_device(reason: str) -> None:
    if device_answers() is False:
        raise Stopped(f"the device is lost to this process: {reason}")
