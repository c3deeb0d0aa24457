"""A Ray to run on, and what is asked of it."""

import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError, WorkerLost

T = TypeVar("T")
R = TypeVar("R")
ANSWER_S = 10.0  # in which a Ray must take a connection
TASK_RETRIES = 3  # of `Cluster.map`: nothing it computes is committed twice, so Ray may do this by itself


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
                _knock(self._address)
                ray.init(address=self._address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
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
        with _uninterrupted():
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


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Deaf to Ctrl-C and SIGTERM while the block runs: a second one would leave processes of a Ray behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at host:port, which Ray itself finds out after minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER_S).close()


def keep_stdout() -> None:
    """Ray tells of lost nodes on stdout, which belongs to results; it has no setting for it."""
    ray._private.worker._worker_logs_enabled = False


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise WorkerLost(f"{type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, as far as one line goes."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
