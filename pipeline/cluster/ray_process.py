"""The process that Ray is in: it does what the driver's `Cluster` asks over a line, and nothing of its own accord.

Ray may end this process (60 s after it lost its GCS), hang in it or bring it down. None of this reaches the driver: it
waits for each answer for so long and no longer.
"""

import math
import os
import select
import shutil
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from time import sleep, time
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster import ray_private
from pipeline.cluster.actor import LabelActor
from pipeline.cluster.causes import cause
from pipeline.cluster.messages import EXCHANGE_S, ActorSpec, Began, ClusterState, Failed, Step
from pipeline.cluster.metrics import RunGauges
from pipeline.cluster.process import private, session
from pipeline.cluster.process.line import Line
from pipeline.cluster.starts import Starts
from pipeline.cluster.task import BEAT, run
from pipeline.messages import EndKind, Orders, WorkerEnd
from pipeline.worker.host import Report

SEND_S = 600.0  # a driver that is stopped by a debugger takes its answers later
END_S = 10.0  # for an end in good order


class Host:
    """What can be asked of Ray."""

    def __init__(self, line: Line, folder: str) -> None:
        self._line = line
        self._actor = ray.remote(LabelActor)
        self._workers: dict[str, Any] = {}
        self._asked: dict[Any, str] = {}  # by the answer that is awaited
        self._out: dict[Any, int] = {}  # items of a map, by the stream of their answers
        self._gauges: RunGauges | None = None
        self._starts = Starts(folder, os.getpid())

    def serve(self) -> None:
        """Answer until the driver is gone."""
        self._tell(0, Step("Ray is imported"))
        while True:
            try:
                number, name, args = self._line.receive(None)
                self._tell(number, self._answer(name, args))
            except EOFError:
                return

    def _tell(self, number: int, message: Any) -> None:
        self._line.send((number, message), SEND_S)

    def _answer(self, name: str, args: Sequence[Any]) -> Any:
        try:
            return getattr(self, name)(*args)
        except Exception as error:  # noqa: BLE001 - the driver judges
            return Failed(cause(error))

    def begin(self, address: str | None, folder: str) -> Began:
        """Join a Ray, or start one in a folder that lives as long as this process."""
        quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
        inner = f"{folder}/{private.RAYS}"
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(address="local", include_dashboard=False, _temp_dir=inner, **quiet)
        except Exception as error:  # noqa: BLE001 - Ray raises all kinds, bare ones too
            lasting = isinstance(error, (ValueError, OSError)) and not isinstance(
                error, (ConnectionError, TimeoutError)
            )
            return Began(refused=cause(error), permanent=lasting)
        return Began(*ray_private.own_node())

    def look(self) -> ClusterState:
        """The cluster now."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        due = ray_private.draining_nodes()
        there = ray.cluster_resources()
        return ClusterState(
            nodes=frozenset(node["NodeID"] for node in nodes),
            draining={node: at / 1000 - time() if at else math.inf for node, at in due.items()},
            gpus=int(there.get("GPU", 0)),
            cpus=int(there.get("CPU", 1)),
            metrics=tuple(f"http://{one['NodeManagerAddress']}:{one['MetricsExportPort']}/metrics" for one in nodes),
        )

    def exchange(self, orders: Orders, spec: ActorSpec | None) -> dict[str, Report | WorkerEnd]:
        """Carry orders out. The answers of workers, once the first has come, or after a second.

        All answers that have come are returned at once, so that the time of a round is linear in the number of workers.
        spec: of the workers that are to be started.
        """
        for name in orders.stop:
            ray.kill(self._workers.pop(name))
            self._asked = {answer: other for answer, other in self._asked.items() if other != name}
        if spec:
            self._workers |= {name: self._start(spec) for name in orders.start}
        for name, seconds in orders.drain.items():
            self._workers[name].drain.remote(seconds)
        for name, tasks in orders.ask.items():
            self._asked[self._workers[name].exchange.remote(tasks, EXCHANGE_S)] = name
        asked = list(self._asked)
        if orders.start or not asked:
            self._starts.heard()
        if not asked:
            sleep(EXCHANGE_S / 10)  # no worker can be started yet
            return {}
        if not ray.wait(asked, num_returns=1, timeout=EXCHANGE_S)[0]:
            failure = self._starts.failure()
            unborn = [self._asked.pop(answer) for answer in asked] if failure else []
            return dict.fromkeys(unborn, WorkerEnd(EndKind.LOST, failure))
        self._starts.heard()
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        return {self._asked.pop(answer): _report(answer) for answer in answered}

    def _start(self, spec: ActorSpec) -> Any:
        return self._actor.options(max_restarts=0, max_task_retries=0, **spec.options).remote(spec.worker)

    def kill_all(self) -> None:
        """Kill every worker."""
        for worker in self._workers.values():
            ray.kill(worker)
        self._workers.clear()
        self._asked.clear()

    def function(self, made: bytes) -> None:
        """What the items that follow are given to, by pickle: it travels once, whatever its size."""
        self._function = ray.put(made)

    def results(self, items: Mapping[int, bytes], wait_s: float) -> dict[int, bytes | str | None]:
        """Take more items, by pickle, each of them to be computed on any CPU of the cluster; what has come meanwhile.

        By an item's number: what `task.run` makes of it, None while it is at work, why its process is no more.
        """
        task = ray.remote(run).options(num_cpus=1, max_retries=0, num_returns="streaming")
        for number, item in items.items():
            self._out[task.remote(self._function, item)] = number
            self._starts.heard()
        if not ray.wait(list(self._out), num_returns=1, timeout=wait_s)[0]:
            if not (failure := self._starts.failure()):
                return {}
            unborn: dict[int, bytes | str | None] = dict.fromkeys(self._out.values(), failure)
            self.cancel()
            return unborn
        self._starts.heard()
        ready, _ = ray.wait(list(self._out), num_returns=len(self._out), timeout=0)
        found = {self._out[stream]: (stream, _next(stream)) for stream in ready}
        for stream, result in found.values():
            if result is not None:
                del self._out[stream]
        return {number: result for number, (_, result) in found.items()}

    def cancel(self) -> None:
        """End what is still out of a map."""
        for stream in self._out:
            ray.cancel(stream, force=True)
        self._out.clear()

    def show(self, figures: Mapping[str, float | None], failures: Mapping[str, float], run: Mapping[str, str]) -> None:
        """Export a moment of the run as metrics, with these labels."""
        self._gauges = self._gauges or RunGauges(run)
        self._gauges.show(figures, failures)


def _report(answer: Any) -> Report | WorkerEnd:
    try:
        report: Report = ray.get(answer)
    except RayError as error:
        return WorkerEnd(EndKind.LOST, cause(error))
    return report


def _next(stream: Any) -> bytes | str | None:
    try:
        said: bytes = ray.get(next(stream))
    except RayError as error:
        return cause(error)
    return None if said == BEAT else said


def main(kind: type[Host] = Host) -> None:
    """Serve the line whose end was handed over; leave no process and no folder when the driver is gone.

    Arguments: the end's number; the folder of a Ray that is to live as long as this process, empty where it joins one.
    """
    descriptor, folder = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)  # by Ray's processes, which would keep the line open
    threading.Thread(target=_guard, args=(descriptor, folder), daemon=True).start()
    kind(Line(socket.socket(fileno=descriptor)), folder).serve()
    if not folder:
        ray.shutdown()  # the cluster is told
    _leave(folder)


def _guard(descriptor: int, folder: str) -> None:
    """The driver may be killed while Ray hangs here."""
    gone = select.poll()
    gone.register(descriptor, 0)  # wakes at hang-ups alone
    gone.poll()
    sleep(END_S)
    _leave(folder)


def _leave(folder: str) -> None:
    if folder:
        session.end(os.getpid(), END_S, spared=os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
