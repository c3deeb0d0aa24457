"""A Ray to run on, seen from the driver, in which there is none: every wait on Ray is a `Cluster.call`, and has an end.

Ray lives in a process of its own (`host`), in a session with all that a private Ray starts. Ray ends the process it is
in 60 s after it lost its GCS, with an exit code of its own, and hangs in it without a word where its raylet is gone: so
it is watched from outside, where neither can happen. What is lost is a `RayLost`; a private Ray is then started afresh.
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
from pipeline.cluster.messages import ActorSpec, Began, ClusterState, Failed, Step
from pipeline.cluster.process import private, session
from pipeline.cluster.process.line import Line
from pipeline.cluster.starts import Starts
from pipeline.errors import ConfigError, FailureKind, PipelineError, RayLost
from pipeline.logs.context import current
from pipeline.messages import Orders, WorkerEnd
from pipeline.searchpath import ROOT, child_environment
from pipeline.watch import SILENCE_S
from pipeline.worker.host import Report

T = TypeVar("T")
R = TypeVar("R")
CALL_S = 45.0  # for an answer: less than the 60 after which a lost GCS ends the process that waits for it
ANSWER_S = 10.0  # in which a Ray must take a connection
LOOK_S = 2.0  # between two looks at whether Ray's processes listen
LAST_S = 0.5  # in which a private raylet that ends its workers has ended as well
END_S = 10.0  # for an end in good order, before it is made one
RESTARTS = 3  # of a private Ray
GCS_S = 30  # after which what is left of a private Ray gives up: nobody will start its GCS again
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
logger = logging.getLogger(__name__)


class Cluster:
    """A Ray to run on: one that is there (address or RAY_ADDRESS), else a private one for the time of the `with`.

    note: told in a sentence when a private Ray is started again. silence_s: after which those who wait for workers here
    stop. host: the program of the process that Ray is in.
    Raises ConfigError where there is no Ray at the address, RayLost.
    """

    def __init__(
        self,
        address: str | None = None,
        note: Callable[[str], None] = lambda said: None,
        silence_s: float = SILENCE_S,
        host: str = "from pipeline.cluster.ray_process import main; main()",
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        self._address = None if address == "local" else address
        self._note, self.silence_s, self._host = note, silence_s, host
        self._restarts = 0
        self._number = 0  # of the last call
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line
        self._said: IO[bytes]  # what the process of Ray writes, which nobody sees
        self._folder = ""
        self._starts: Starts | None = None
        self._began, self._seen = Began(), ClusterState()
        self._next_look = 0.0
        self._dead = ""  # why nothing more is asked of it
        self._alone_since: float | None = None  # when the GCS of a cluster was first found not to listen

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

    @property
    def is_private(self) -> bool:
        """Whether it was started for this `with`: nothing will join it."""
        return self._address is None

    @property
    def session(self) -> int:
        """The number that all processes started for this `with` share."""
        return self._process.pid if self._process else 0

    @property
    def folder(self) -> str:
        """Where a private Ray has its files; empty for another."""
        return self._folder

    @property
    def gcs(self) -> str:
        """Where drivers would join it, as host:port."""
        return self._began.gcs

    @property
    def gpus(self) -> int:
        """GPUs of the cluster when it was last looked at."""
        return self._seen.gpus

    @property
    def cpus(self) -> int:
        """CPUs of the cluster when it was last looked at."""
        return self._seen.cpus

    def look(self) -> ClusterState:
        """ClusterState at the cluster's nodes. Raises RayLost."""
        self._seen = self.call("look")
        return self._seen

    def exchange(self, orders: Orders, spec: ActorSpec | None) -> dict[str, Report | WorkerEnd]:
        """See Host.exchange. Raises RayLost."""
        answers: dict[str, Report | WorkerEnd] = self.call("exchange", orders, spec)
        if any(isinstance(answer, WorkerEnd) for answer in answers.values()):
            self.check_soon()
        return answers

    def show(self, figures: Mapping[str, float | None], failures: Mapping[FailureKind, float]) -> None:
        """Export a moment of a run as metrics, unless Ray is lost."""
        with suppress(RayLost):
            self.call("show", figures, {kind.value: count for kind, count in failures.items()}, current().labels)

    def map(self, function: Callable[[T], R], items: Iterable[T], *, in_flight: int | None = None) -> Iterator[R]:
        """function(item) for every item, in order, on the CPUs of the cluster; at most in_flight items are out at once.

        function, items and results travel by pickle; what is defined in a function or a test travels whole. An item
        whose process died is tried again; what function raises is raised here. in_flight: twice the CPUs by default.
        One map at a time.
        Raises WorkerLost where processes keep dying, Stopped where nothing moves, RayLost.
        """
        return map_on_cluster(self, function, items, in_flight or 2 * self.cpus)

    def call(self, name: str, *arguments: Any, within: float = CALL_S) -> Any:
        """What a method of `Host` answers: the one place where a driver waits for Ray.

        Raises RayLost where a process of Ray is gone or fails, or where neither an answer nor a step towards one comes
        within so many seconds.
        """
        if self._dead:
            raise RayLost(self._dead)
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
                number, answer = self._line.receive(LOOK_S)
            except TimeoutError:
                self.check()
                if monotonic() > due:
                    raise
                continue
            if isinstance(answer, Step):
                due = monotonic() + within
            elif number == self._number:  # else: of a call that was interrupted
                break
        if answer == {} and monotonic() > self._next_look:  # nobody has a word to say; Ray notes each look in its logs
            self.check()
        return answer

    def check(self) -> None:
        """Raises RayLost where one of Ray's processes that everything rests on is gone, ConfigError where a private Ray
        does not come to an end of its start because no worker can.
        """
        self._next_look = monotonic() + LOOK_S
        if self._starts and not self._began.raylet and (failure := self._starts.failure()):
            raise ConfigError(f"no worker can start: {failure}")
        if gone := self._gone(CALL_S):  # whoever keeps a cluster may bring its GCS back
            raise self._lost(gone)

    def check_soon(self) -> None:
        """The same where processes of workers have died: with Ray all of them do, and some a moment before it."""
        self.check()
        if self.is_private:
            sleep(LAST_S)
            self.check()

    def _lost(self, how: str) -> RayLost:
        self._dead = f"{self}: {self._gone(0.0) or how}"
        return RayLost(self._dead)

    def _gone(self, patience: float) -> str:
        if self._folder and not self._began.raylet:
            return self._died_early()
        if self._began.raylet and not _listens(self._began.raylet):
            return "its raylet is gone"
        if not self._began.gcs or _listens(self._began.gcs):
            self._alone_since = None
            return ""
        self._alone_since = self._alone_since or monotonic()
        return "its GCS is gone" if self.is_private or monotonic() >= self._alone_since + patience else ""

    def _died_early(self) -> str:
        """What of a Ray that is being started has ended already, for which Ray waits half a minute."""
        known = {"raylet": "raylet", "gcs_server": "GCS"}
        died = [known[name] for name in session.died(self.session) if name in known]
        return f"its {died[0]} has ended while it was starting" if died else ""

    def _ended(self) -> PipelineError:
        self._said.seek(0)
        text = self._said.read().decode(errors="replace")
        if not self._began.raylet and (why := raised(text)):
            return ConfigError(f"Ray cannot start here: {why}")  # as it would again: Python itself has ended it
        return self._lost(f"its process here has ended; the last it said: {last_words(text) or 'nothing'}")

    def restart(self, lost: RayLost) -> None:
        """Start a private Ray afresh, with nothing of what ran in it. Raises RayLost where that cannot be."""
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
        self._dead = ""
        if self._address:
            _knock(self._address)
        else:
            self._folder = private.make_folder()
        ours, theirs = socket.socketpair()
        self._line = Line(ours)
        self._said = tempfile.TemporaryFile(dir=self._folder or None)  # noqa: SIM115 - `_end` closes it
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._host, str(theirs.fileno()), self._folder],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said,
                start_new_session=True, **self._surroundings(),
            )  # fmt: skip
        self._starts = None if self._address else Starts(self._folder, self._process.pid)
        step_s = min(self.silence_s, SILENCE_S)  # who waits long for machines waits for this one no longer
        began: Began = self.call("begin", self._address, self._folder, within=step_s)
        if began.refused and self._address:
            _knock(self._address)
            raise ConfigError(f"no Ray at {self._address}: {began.refused}")
        if began.refused and began.permanent:
            remedy = "free memory or disk, or do without Ray (label --workers 0)"
            raise ConfigError(f"Ray cannot start here: {began.refused.rstrip('.')}; {remedy}")
        if began.refused:
            raise RayLost(f"{self}: does not start: {began.refused}")
        self._began = began
        self.look()

    def _surroundings(self) -> dict[str, Any]:
        """What the process of Ray is begun with. Workers look for modules in the folder that it is begun in before all
        others: a private one has none, that of our packages has ours on the nodes of a cluster too.
        """
        if self._address:
            return {"cwd": ROOT, "env": os.environ | child_environment()}
        patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_S)}
        given = patience | os.environ | child_environment(moved=True) | private.environment()
        return {"cwd": self._folder, "umask": 0o077, "env": given}

    def _end(self, within: float = 0.0) -> None:
        """Leave none of its processes and files behind. within: seconds for a cluster to be told."""
        self._began = Began()
        if self._process:
            self._line.close()
            if within and self._address and not self._dead:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(within)
            if self._process.returncode is None:  # else its number may be another's by now
                session.end(self._process.pid, END_S)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_S)
            self._process = None
            self._said.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def _knock(address: str) -> None:
    """Raises ConfigError where nobody listens at host:port, which Ray itself finds out after minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), ANSWER_S).close()
        except OSError as error:
            raise ConfigError(f"no Ray at {address}: {error}") from error


def _listens(place: str) -> bool:
    """Whether somebody takes connections at a socket's path, or at host:port; True where that cannot be told."""
    try:
        if place.startswith("/"):
            with socket.socket(socket.AF_UNIX) as end:
                end.settimeout(LOOK_S)
                end.connect(place)
        else:
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), LOOK_S).close()
    except OSError as error:
        return not isinstance(error, (ConnectionRefusedError, FileNotFoundError)) and error.errno not in _UNREACHABLE
    return True


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
