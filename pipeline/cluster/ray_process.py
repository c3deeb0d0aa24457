"""The process that Ray runs in: it answers the calls of the driver's `Cluster` over a line, and does nothing else.

Ray may end this process (60 s after its GCS is lost), hang in it or crash it. The driver survives that: it waits for
each answer for a limited time.
"""

import logging
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
from pipeline.cluster.causes import cause, raised
from pipeline.cluster.messages import EXCHANGE_S, ActorSpec, ClusterState, Failed, Logged, RayStart
from pipeline.cluster.metrics import RunGauges
from pipeline.cluster.process import private, session
from pipeline.cluster.process.line import Line
from pipeline.cluster.starts import Starts
from pipeline.cluster.task import BEAT, run
from pipeline.logs.records import collect
from pipeline.logs.text import told
from pipeline.messages import EndKind, Orders, WorkerEnd
from pipeline.worker.host import Report

SEND_S = 600.0  # a driver that is stopped in a debugger takes its answers later
END_S = 10.0  # for processes to end by themselves
logger = logging.getLogger(__name__)


class RayServer:
    """The calls that a driver can make."""

    def __init__(self, line: Line, folder: str) -> None:
        self._line = line
        self._actor = ray.remote(LabelActor)
        self._workers: dict[str, Any] = {}
        self._asked: dict[Any, str] = {}  # names of workers by the answer that they owe
        self._out: dict[Any, int] = {}  # numbers of a map's items by the stream of their answers
        self._gauges: RunGauges | None = None
        self._log = collect(logging.WARNING)
        self._starts = Starts(folder, os.getpid())

    def serve(self) -> None:
        """Answer calls until the driver is gone."""
        self._tell(0, Logged())  # Ray is imported
        while True:
            try:
                number, name, args = self._line.receive(None)
                self._tell(number, self._answer(name, args))
            except EOFError:
                return

    def _tell(self, number: int, message: Any) -> None:
        if records := self._log.take():
            self._line.send((number, Logged(records)), SEND_S)
        self._line.send((number, message), SEND_S)

    def _answer(self, name: str, args: Sequence[Any]) -> Any:
        try:
            return getattr(self, name)(*args)
        except Exception as error:
            logger.exception("%s: %s", name, told(error))
            return Failed(cause(error))

    def begin(self, address: str | None, folder: str) -> RayStart:
        """Join the Ray at an address, or start a private one in a folder."""
        quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
        inner = f"{folder}/{private.RAYS}"
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(address="local", include_dashboard=False, _temp_dir=inner, **quiet)
        except Exception as error:
            logger.warning("Ray does not start", exc_info=error)
            lasting = isinstance(error, (ValueError, OSError)) and not isinstance(
                error, (ConnectionError, TimeoutError)
            )
            return RayStart(refused=cause(error), permanent=lasting)
        return RayStart(*ray_private.own_node())

    def look(self) -> ClusterState:
        """The state of the cluster now."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        due = ray_private.draining_nodes()
        resources = ray.cluster_resources()
        return ClusterState(
            nodes=frozenset(node["NodeID"] for node in nodes),
            draining={node: at / 1000 - time() if at else math.inf for node, at in due.items()},
            gpus=int(resources.get("GPU", 0)),
            cpus=int(resources.get("CPU", 1)),
            metrics=tuple(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes),
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
            self._starts.answered()
        if not asked:
            sleep(EXCHANGE_S / 10)  # no worker can be started yet
            return {}
        if not ray.wait(asked, num_returns=1, timeout=EXCHANGE_S)[0]:
            failure = self._starts.failure()
            unborn = [self._asked.pop(answer) for answer in asked] if failure else []
            return dict.fromkeys(unborn, WorkerEnd(EndKind.LOST, failure))
        self._starts.answered()
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
        """Take the function of a map, by pickle. It travels once for all items."""
        self._function = ray.put(made)

    def results(self, items: Mapping[int, bytes], wait_s: float) -> dict[int, bytes | str | None]:
        """Take more items of a map, by pickle and by number. Returns what has come within wait_s seconds, by number.

        bytes: the last value of `task.run`; None: a sign of life; str: why the item's process ended.
        """
        task = ray.remote(run).options(num_cpus=1, max_retries=0, num_returns="streaming")
        for number, item in items.items():
            self._out[task.remote(self._function, item)] = number
            self._starts.answered()
        if not ray.wait(list(self._out), num_returns=1, timeout=wait_s)[0]:
            if not (failure := self._starts.failure()):
                return {}
            unborn: dict[int, bytes | str | None] = dict.fromkeys(self._out.values(), failure)
            self.cancel()
            return unborn
        self._starts.answered()
        ready, _ = ray.wait(list(self._out), num_returns=len(self._out), timeout=0)
        found = {self._out[stream]: (stream, _next(stream)) for stream in ready}
        for stream, result in found.values():
            if result is not None:
                del self._out[stream]
        return {number: result for number, (_, result) in found.items()}

    def cancel(self) -> None:
        """End the computation of a map's items."""
        for stream in self._out:
            ray.cancel(stream, force=True)
        self._out.clear()

    def show(self, figures: Mapping[str, float | None], failures: Mapping[str, float], run: Mapping[str, str]) -> None:
        """Export a moment of the run as metrics, with these labels."""
        self._gauges = self._gauges or RunGauges()
        self._gauges.show(figures, failures, run)


def _report(answer: Any) -> Report | WorkerEnd:
    try:
        report: Report = ray.get(answer)
    except RayError as error:
        if raised(str(error)):  # in the actor, by code of ours; else its process is gone, which the driver logs
            logger.warning("a worker's process ended", exc_info=error)
        return WorkerEnd(EndKind.LOST, cause(error))
    return report


def _next(stream: Any) -> bytes | str | None:
    try:
        value: bytes = ray.get(next(stream))
    except RayError as error:
        return cause(error)
    return None if value == BEAT else value


def main(kind: type[RayServer] = RayServer) -> None:
    """Serve a driver. When it is gone, end all processes of a private Ray and delete its folder.

    Arguments of the process: the file descriptor of the line; the folder of a private Ray, empty to join a cluster.
    """
    descriptor, folder = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)  # Ray's processes would keep the line open
    threading.Thread(target=_guard, args=(descriptor, folder), daemon=True).start()
    kind(Line(socket.socket(fileno=descriptor)), folder).serve()
    if not folder:
        ray.shutdown()  # in order, so that the cluster sees no failure
    _leave(folder)


def _guard(descriptor: int, folder: str) -> None:
    """End this process when the driver is gone, also where Ray hangs in it."""
    gone = select.poll()
    gone.register(descriptor, 0)  # wakes only when the driver is gone
    gone.poll()
    sleep(END_S)
    _leave(folder)


def _leave(folder: str) -> None:
    if folder:
        session.end(os.getpid(), END_S, spared=os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
