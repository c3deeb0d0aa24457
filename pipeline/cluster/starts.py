"""Whether processes of workers come to life on a private Ray. Of one that ends before it is a worker only Ray knows: it
starts another in its place, for ever, and lets whoever joins it wait meanwhile.
"""

import re
from pathlib import Path
from time import monotonic

from pipeline.cluster.causes import last_words
from pipeline.cluster.process import session
from pipeline.cluster.process.private import RAYS

PATIENCE_S = 30.0  # without a word from any worker, after which it is asked whether their processes live
_STARTED = re.compile(rb"Started worker process with pid (\d+)")


class Starts:
    """What the raylet of a private Ray tells of processes that it has started since anything was heard of workers.

    folder, processes: of that Ray, see `private` and `session`.
    """

    def __init__(self, folder: str, processes: int) -> None:
        logs = Path(folder, RAYS, "session_latest", "logs")
        self._told, self._said = logs / "raylet.out", logs / "raylet.err"  # by it; by processes that are no workers yet
        self._processes = processes
        self.heard()

    def heard(self) -> None:
        """Something was heard of a worker."""
        self._at = monotonic()
        self._read = {log: log.stat().st_size if log.exists() else 0 for log in (self._told, self._said)}

    def failure(self) -> str:
        """Why all of them have ended since; empty where one lives, or where that cannot be known."""
        if monotonic() < self._at + PATIENCE_S:
            return ""
        started = {int(pid) for pid in _STARTED.findall(self._since(self._told))}
        if not started or not (alive := session.members(self._processes)) or not started.isdisjoint(alive):
            return ""
        said = last_words(self._since(self._said).decode(errors="replace"))
        self.heard()
        return f"its process ends as it begins: {said or 'without a word'}"

    def _since(self, log: Path) -> bytes:
        return log.read_bytes()[self._read[log] :] if log.exists() else b""
