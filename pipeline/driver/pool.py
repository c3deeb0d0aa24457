"""Where tasks go and outcomes come from: the seam between the driver and the processes that label.

`LocalPool` has its workers in threads of this process, `cluster.RayPool` one an actor; both keep a `WorkerRegistry`.
"""

from collections.abc import Callable
from typing import Protocol

from pipeline.driver.workers import STALL_S, WorkerHandle, WorkerRegistry
from pipeline.errors import Stopped
from pipeline.logs.context import bound
from pipeline.messages import Outcome
from pipeline.worker.device_errors import device_answers
from pipeline.worker.host import Report, WorkerHost
from pipeline.worker.worker import Worker


class Pool(Protocol):
    """Workers, seen from the driver."""

    @property
    def staff(self) -> WorkerRegistry:
        """What is known of the workers."""
        ...

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most. A dead worker is a retryable ShardFailure for each task it held.

        Raises PipelineError where no worker can be started at all.
        """
        ...

    def close(self) -> None:
        """Leave no worker behind."""
        ...


class LocalPool:
    """Workers in threads of this process: for tests, and for machines without Ray."""

    def __init__(self, build: Callable[[], Worker], workers: int = 1, stall_s: float = STALL_S) -> None:
        self.staff = WorkerRegistry(workers)
        self._build = build
        self._stall_s = stall_s
        self._stations: dict[WorkerHandle, WorkerHost] = {}

    def wait(self) -> list[Outcome]:
        """What happened, after a second at most."""
        outcomes: list[Outcome] = []
        for desk in self.staff.hire():
            with bound(worker=desk.name):
                self._stations[desk] = WorkerHost(self._build)
        for desk, station in list(self._stations.items()):
            report = station.exchange(desk.send(), 0.2 / len(self._stations))
            outcomes += self.staff.note(desk, report)
            ended = end_of(desk, report, self._stall_s)
            if ended is not None:  # a thread cannot be killed: one that hangs is left behind, and late commits lose
                del self._stations[desk]
                if device_answers() is False:  # to this process, and every other worker would be one of it
                    raise Stopped(f"the device is lost to this process: {ended}")
                outcomes += self.staff.dismiss(desk, ended, report.permanent)
        return outcomes

    def close(self) -> None:
        """End the workers; nobody waits for what they have at hand."""
        for station in self._stations.values():
            station.drain(0.0)


def end_of(desk: WorkerHandle, report: Report, stall_s: float) -> str | None:
    """Why a worker is no more, or must go; None where it may go on."""
    if report.ended is not None:
        return report.ended
    return f"nothing moved for {report.still_s:.0f} s" if desk.hangs(report, stall_s) else None
