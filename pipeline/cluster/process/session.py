"""The processes of a session: all that a process started, and what those started, however many of them have died since.

A process that is started in a session of its own gives it its number, and nobody else gets that number while any of
them lives.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

_PROCESSES = Path("/proc")


def members(session: int) -> list[int]:
    """Ids of its processes that run. Empty where the system does not tell (it is no Linux)."""
    return [pid for pid, (_, state, _) in _processes(session).items() if state != "Z"]


def died(session: int) -> list[str]:
    """Names of the programs that its first process has started itself, and of whose end it has not taken note."""
    found = _processes(session).values()
    return [name for name, state, parent in found if state == "Z" and parent == session]


def _processes(session: int) -> dict[int, tuple[str, str, int]]:
    """Name, state and parent of its processes."""
    found = {}
    for place in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # it has ended just now
            named, _, rest = place.joinpath("stat").read_text().rpartition(")")
            state, parent, _, its = rest.split()[:4]
            if int(its) == session:
                found[int(place.name)] = named.partition("(")[2], state, int(parent)
    return found


def end(session: int, within: float, spared: int = 0) -> None:
    """Kill every process of a session, those included that are started meanwhile, but the spared one."""
    due = monotonic() + within
    if not _PROCESSES.joinpath("self").exists():
        with suppress(OSError):
            os.killpg(session, signal.SIGKILL)
    while (left := [pid for pid in members(session) if pid != spared]) and monotonic() < due:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        sleep(0.02)
