"""A Ray cluster, seen from the driver, whose process imports no Ray: `Cluster.call` is the only wait for Ray, and ends.

Ray runs in a process of its own (`ray_process`), in one session with all processes that a private Ray starts. Ray ends
its own process 60 s after its GCS is lost, and hangs without a message where its raylet is gone. Neither can happen to
the driver, which watches from outside: a lost Ray is a `RayLost`, and a private one is then started again.
"""

import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import IO, Any, TypeVar

from pipeline.cluster.causes import last_words, raised
from pipeline.cluster.mapping import map_on_cluster
from pipeline.cluster.messages import ActorSpec, ClusterState, Failed, Logged, RayStart
from pipeline.cluster.process import private, session
from pipeline.cluster.process.line import Line
from pipeline.cluster.starts import Starts
from pipeline.errors import ConfigError, PipelineError, RayLost
from pipeline.logs.context import current
from pipeline.logs.records import replay
from pipeline.messages import Orders, WorkerEnd
from pipeline.searchpath import ROOT, child_environment
from pipeline.watch import SILENCE_S
from pipeline.worker.host import Report

T = TypeVar("T")
R = TypeVar("R")
CALL_S = 45.0  # for an answer: less than the 60 after which a lost GCS ends the process that waits for it
CONNECT_S = 10.0  # in which a Ray must accept a connection
CHECK_S = 2.0  # between two checks that Ray's processes listen
RAYLET_END_S = 0.5  # in which a private raylet that ends its workers has ended as well
END_S = 10.0  # for processes to end by themselves, before they are killed
RESTARTS = 3  # of a private Ray
GCS_S = 30  # after which processes of a private Ray end whose GCS is lost: nothing will start it again
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
logger = logging.getLogger(__name__)


class Cluster:
    """A Ray cluster: the one at address or RAY_ADDRESS, else a private Ray, started for the time of the `with`.

    note: called with a sentence when a private Ray is started again. is_private: no other node or driver joins it.
    folder: of a private Ray's files; empty for a cluster. session: id of the session of all processes that were started
    for this `with`. gpus, cpus: of the cluster at the last `look`. silence_s: seconds without progress after which a
    map stops. host: the program of the process that Ray runs in.
    Raises ConfigError where no Ray is at the address or none can start here, RayLost.
    """

    def __init__(
        self,
        address: str | None = None,
        note: Callable[[str], None] = lambda message: None,
        silence_s: float = SILENCE_S,
        host: str = "from pipeline.cluster.ray_process import main; main()",
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        self._address = None if address == "local" else address
        self.is_private = self._address is None
        self._note, self.silence_s, self._host = note, silence_s, host
        self._restarts = 0
        self._number = 0  # of the last call
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line
        self._output: IO[bytes]  # standard output and error of Ray's process; the end of it tells why it ended
        self.folder, self.session, self.gpus, self.cpus = "", 0, 0, 1
        self._starts: Starts | None = None
        self._began = RayStart()
        self._next_check = 0.0
        self._lost_reason = ""  # why no call is made any more
        self._gcs_silent_since: float | None = None  # when the GCS was first found not to listen

    def __enter__(self) -> "Cluster":
        try:
            try:
                self._begin()
            except RayLost as lost:
                self.restart(lost)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with _uninterrupted():
            self._end(END_S)

    def __str__(self) -> str:
        return f"the Ray at {self._address}" if self._address else "the private Ray"

    def look(self) -> ClusterState:
        """The state of the cluster now. Raises RayLost."""
        state: ClusterState = self.call("look")
        self.gpus, self.cpus = state.gpus, state.cpus
        return state

    def exchange(self, orders: Orders, spec: ActorSpec | None) -> dict[str, Report | WorkerEnd]:
        """See RayServer.exchange. Raises RayLost."""
        answers: dict[str, Report | WorkerEnd] = self.call("exchange", orders, spec)
        if any(isinstance(answer, WorkerEnd) for answer in answers.values()):
            self.check_soon()
        return answers

    def show(self, figures: Mapping[str, float | None], failures: Mapping[str, float]) -> None:
        """Export a moment of a run as metrics, unless Ray is lost."""
        with suppress(RayLost):
            self.call("show", figures, dict(failures), current().labels)

    def map(self, function: Callable[[T], R], items: Iterable[T], *, in_flight: int | None = None) -> Iterator[R]:
        """function(item) for every item, in order, on the CPUs of the cluster.

        function, items and results travel by pickle, functions of no module by value. An item whose process died is
        tried again; what function raises is raised here. in_flight: the most items that are computed or wait at once,
        by default twice the CPUs. One map at a time.
        Raises WorkerLost where processes keep dying, Stopped where nothing moves, RayLost.
        """
        return map_on_cluster(self, function, items, in_flight or 2 * self.cpus)

    def call(self, name: str, *arguments: Any, within: float = CALL_S) -> Any:
        """Call a method of `RayServer` in Ray's process. Drivers wait for Ray here alone.

        within: seconds, for an answer or a step towards one. Raises RayLost where none comes, or where a process of Ray
        is gone or fails.
        """
        if self._lost_reason:
            raise RayLost(self._lost_reason)
        try:
            answer = self._answer(name, arguments, within)
        except TimeoutError:
            raise self._lost(f"does not answer for {within:.0f} s") from None
        except EOFError:
            raise self._ended() from None
        if isinstance(answer, Failed):
            raise RayLost(f"{self}: {self._gone(0.0) or f'fails: {answer.why}'}")
        return answer

    def _answer(self, name: str, arguments: tuple[Any, ...], within: float) -> Any:
        self._number += 1
        self._line.send((self._number, name, arguments), within)
        due = monotonic() + within
        while True:
            try:
                number, answer = self._line.receive(CHECK_S)
            except TimeoutError:
                self.check()
                if monotonic() > due:
                    raise
                continue
            if isinstance(answer, Logged):
                due = monotonic() + within
                replay(answer.records, **current().labels)
            elif number == self._number:  # else it answers a call that was interrupted
                break
        if answer == {} and monotonic() > self._next_check:  # no worker answered; Ray logs each check: not more often
            self.check()
        return answer

    def check(self) -> None:
        """Check Ray's processes.

        Raises RayLost where the raylet or the GCS is gone, ConfigError where a private Ray does not finish its start
        because no process of a worker can start.
        """
        self._next_check = monotonic() + CHECK_S
        if self._starts and not self._began.raylet and (failure := self._starts.failure()):
            raise ConfigError(f"no worker can start: {failure}")
        if gone := self._gone(CALL_S):  # the GCS of a cluster may come back
            raise self._lost(gone)

    def check_soon(self) -> None:
        """Check Ray's processes after workers have died: those of a private Ray may die a moment before its raylet.

        Raises RayLost, ConfigError, see `check`.
        """
        self.check()
        if self.is_private:
            sleep(RAYLET_END_S)
            self.check()

    def _lost(self, how: str) -> RayLost:
        self._lost_reason = f"{self}: {self._gone(0.0) or how}"
        return RayLost(self._lost_reason)

    def _gone(self, patience: float) -> str:
        if self.folder and not self._began.raylet:
            known = {"raylet": "raylet", "gcs_server": "GCS"}  # Ray itself waits half a minute for them
            died = [known[name] for name in session.died(self.session) if name in known]
            return f"its {died[0]} has ended while it was starting" if died else ""
        if self._began.raylet and not _is_listening(self._began.raylet):
            return "its raylet is gone"
        if not self._began.gcs or _is_listening(self._began.gcs):
            self._gcs_silent_since = None
            return ""
        self._gcs_silent_since = self._gcs_silent_since or monotonic()
        return "its GCS is gone" if self.is_private or monotonic() >= self._gcs_silent_since + patience else ""

    def _ended(self) -> PipelineError:
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        if not self._began.raylet and (why := raised(text)):
            return ConfigError(f"Ray cannot start here: {why}")  # again and again: Python itself has ended it
        return self._lost(f"its process here has ended; the last it said: {last_words(text) or 'nothing'}")

    def restart(self, lost: RayLost) -> None:
        """Start a private Ray again, without what ran in it. Raises RayLost for a cluster, or after RESTARTS times."""
        while self.is_private and self._restarts < RESTARTS:
            self._restarts += 1
            logger.warning("%s; it is started again (%d of %d)", lost, self._restarts, RESTARTS)
            self._note(f"{lost}; it is started again ({self._restarts} of {RESTARTS})")
            try:
                return self._begin()
            except RayLost as again:
                lost = again
        raise lost

    def _begin(self) -> None:
        self._end()
        self._lost_reason = ""
        if self._address:
            _check_reachable(self._address)
        else:
            self.folder = private.make_folder()
        driver_end, ray_end = socket.socketpair()
        self._line = Line(driver_end)
        self._output = tempfile.TemporaryFile(dir=self.folder or None)  # noqa: SIM115 - `_end` closes it
        with ray_end:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._host, str(ray_end.fileno()), self.folder],
                pass_fds=[ray_end.fileno()], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                start_new_session=True, **self._surroundings(),
            )  # fmt: skip
        self.session = self._process.pid
        self._starts = None if self._address else Starts(self.folder, self.session)
        step_s = min(self.silence_s, SILENCE_S)  # a long --stall is for machines that come later, not for this one
        began: RayStart = self.call("begin", self._address, self.folder, within=step_s)
        if began.refused and self._address:
            _check_reachable(self._address)
            raise ConfigError(f"no Ray at {self._address}: {began.refused}")
        if began.refused and began.permanent:
            remedy = "free memory or disk, or do without Ray (label --workers 0)"
            raise ConfigError(f"Ray cannot start here: {began.refused.rstrip('.')}; {remedy}")
        if began.refused:
            raise RayLost(f"{self}: does not start: {began.refused}")
        self._began = began
        self.look()

    def _surroundings(self) -> dict[str, Any]:
        """Working folder and environment of Ray's process.

        Workers look for modules in that folder first. A private Ray's folder has none; the folder of our packages makes
        the nodes of a cluster find them.
        """
        if self._address:
            return {"cwd": ROOT, "env": os.environ | child_environment()}
        patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_S)}
        given = patience | os.environ | child_environment(moved=True) | private.environment()
        return {"cwd": self.folder, "umask": 0o077, "env": given}

    def _end(self, within: float = 0.0) -> None:
        """End all processes and delete all files of this `with`. within: seconds to leave a cluster in order."""
        self._began = RayStart()
        if self._process:
            self._line.close()
            if within and self._address and not self._lost_reason:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(within)
            if self._process.returncode is None:  # else another process may have its id by now
                session.end(self.session, END_S)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_S)
            self._process = None
            self._output.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = ""


def _check_reachable(address: str) -> None:
    """Raises ConfigError where nothing listens at host:port, which Ray itself takes minutes to find out."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError as error:
            raise ConfigError(f"no Ray at {address}: {error}") from error


def _is_listening(address: str) -> bool:
    """Whether a process accepts connections at a socket's path, or at host:port; True where that cannot be known."""
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as end:
                end.settimeout(CHECK_S)
                end.connect(address)
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CHECK_S).close()
    except OSError as error:
        return not isinstance(error, (ConnectionRefusedError, FileNotFoundError)) and error.errno not in _UNREACHABLE
    return True


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM in the block: a second one would leave processes of a private Ray behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler or signal.SIG_DFL)
