"""Detects that no process of a worker can start on a private Ray.

Where a process ends before it becomes a worker, only Ray's logs tell: Ray starts another one, again and again, and lets
its drivers wait.
"""

import re
from pathlib import Path
from time import monotonic

from pipeline.cluster.causes import last_words
from pipeline.cluster.process import session
from pipeline.cluster.process.private import RAYS

PATIENCE_S = 30.0  # without an answer from any worker, after which their processes are looked up
_STARTED = re.compile(rb"Started worker process with pid (\d+)")


class Starts:
    """The processes that the raylet of a private Ray has started since the last answer of a worker.

    folder: of that Ray, see `private`. session_id: of the session of its processes.
    """

    def __init__(self, folder: str, session_id: int) -> None:
        logs = Path(folder, RAYS, "session_latest", "logs")
        self._raylet_log = logs / "raylet.out"
        self._process_log = logs / "raylet.err"  # of processes that are no workers yet
        self._session_id = session_id
        self.answered()

    def answered(self) -> None:
        """A worker answered: what was logged before does not count."""
        self._at = monotonic()
        self._read = {log: log.stat().st_size if log.exists() else 0 for log in (self._raylet_log, self._process_log)}

    def failure(self) -> str:
        """Why all these processes have ended; empty where one lives, or where that cannot be known."""
        if monotonic() < self._at + PATIENCE_S:
            return ""
        started = {int(pid) for pid in _STARTED.findall(self._since(self._raylet_log))}
        if not started or not (alive := session.members(self._session_id)) or not started.isdisjoint(alive):
            return ""
        reason = last_words(self._since(self._process_log).decode(errors="replace"))
        self.answered()
        return f"its process ends as it begins: {reason or 'without a word'}"

    def _since(self, log: Path) -> bytes:
        return log.read_bytes()[self._read[log] :] if log.exists() else b""
