"""The processes of a session: those that a process started, and their descendants, whichever of them have died since.

A process that is started in a session of its own gives the session its id. No other process or session gets that id
while a process of the session lives.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

_PROCESSES = Path("/proc")


def members(session: int) -> list[int]:
    """Process ids of a session's running processes. Empty on systems other than Linux."""
    return [pid for pid, (_, state, _) in _processes(session).items() if state != "Z"]


def died(session: int) -> list[str]:
    """Program names of children of a session's first process that have ended, and that it has not waited for yet."""
    found = _processes(session).values()
    return [name for name, state, parent in found if state == "Z" and parent == session]


def _processes(session: int) -> dict[int, tuple[str, str, int]]:
    """Name, state and parent of a session's processes, by process id."""
    found = {}
    for folder in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # it has ended just now
            named, _, rest = folder.joinpath("stat").read_text().rpartition(")")
            state, parent, _, its = rest.split()[:4]
            if int(its) == session:
                found[int(folder.name)] = named.partition("(")[2], state, int(parent)
    return found


def end(session: int, within: float, spared: int = 0) -> None:
    """Kill every process of a session but the spared one, also those that start meanwhile. within: seconds."""
    due = monotonic() + within
    if not _PROCESSES.joinpath("self").exists():
        with suppress(OSError):
            os.killpg(session, signal.SIGKILL)
    while (left := [pid for pid in members(session) if pid != spared]) and monotonic() < due:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        sleep(0.02)
