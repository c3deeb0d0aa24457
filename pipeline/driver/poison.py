"""Poison detection: a bisection finds the sample that kills its worker, from the last heartbeats of dead workers.

A window that two workers died with is suspect. One worker labels it apart from the rest, piece by piece, and announces
each piece before it touches it. The piece with which the worker dies is halved; a sample with which it dies twice alone
is poison, and gets a row that says so. A worker killed from outside costs a probe and never makes a sample poison.
At most 4 + log2(window) deaths a poison: 2 until suspected, log2(window) halvings, one more alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.messages import Heartbeat, Probe, ShardTask

DEATHS_TO_SUSPECT = 2
DEATHS_ALONE = 2


@dataclass(slots=True)
class _Window:
    deaths: int = 0
    span: tuple[int, int] | None = None  # samples first..last that hold the poison, both included
    alone: int = 0  # deaths since the span is one sample
    poison: set[int] = field(default_factory=set)


class PoisonDetector:
    """The windows that workers died with. window: samples in a window."""

    def __init__(self, window: int) -> None:
        self._size = window
        self._windows: dict[tuple[str, int], _Window] = {}

    def record_death(self, heartbeats: Iterable[Heartbeat]) -> None:
        """Count a worker's death once for each window of its last heartbeats; a probe's piece narrows the search."""
        probed_last = sorted(heartbeats, key=lambda heartbeat: heartbeat.probed)
        by_window = {(heartbeat.shard, heartbeat.window): heartbeat for heartbeat in probed_last}
        for key, heartbeat in by_window.items():
            suspect = self._windows.setdefault(key, _Window())
            suspect.deaths += 1
            if suspect.span and heartbeat.probed:
                self._narrow(suspect, heartbeat)
            elif suspect.deaths >= DEATHS_TO_SUSPECT and suspect.span is None:
                suspect.span = self._whole(heartbeat.window)

    def _narrow(self, suspect: _Window, heartbeat: Heartbeat) -> None:
        span = heartbeat.first, heartbeat.last
        is_one = heartbeat.first == heartbeat.last
        suspect.alone = suspect.alone + 1 if is_one and span == suspect.span else int(is_one)
        suspect.span = span
        if suspect.alone >= DEATHS_ALONE:
            suspect.poison.add(heartbeat.first)
            suspect.span, suspect.alone = self._whole(heartbeat.window), 0

    def _whole(self, window: int) -> tuple[int, int]:
        return window * self._size, (window + 1) * self._size - 1

    def split(self, task: ShardTask) -> Iterator[ShardTask]:
        """Split a task: each suspect window becomes a probe, the windows between them stay tasks."""
        first = task.first_window
        for (shard, window), suspect in sorted(self._windows.items()):
            last = task.last_window
            if shard != task.shard.id or suspect.span is None or window < first or (last is not None and window > last):
                continue
            if first < window:
                yield replace(task, first_window=first, last_window=window - 1, probe=None)
            probe = Probe(*suspect.span, tuple(sorted(suspect.poison)))
            yield replace(task, first_window=window, last_window=window, probe=probe)
            first = window + 1
        if task.last_window is None or first <= task.last_window:
            yield replace(task, first_window=first, probe=None)

    def forget(self, shard: str, window: int) -> None:
        """Drop what is known of a window: it is committed."""
        self._windows.pop((shard, window), None)
