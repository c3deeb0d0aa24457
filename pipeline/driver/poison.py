"""Which sample kills its worker: a search by halves, over deaths that are known by their last heartbeat alone.

A window that was in hand at two deaths is suspect, and labelled apart from the rest by one worker, piece after piece,
each announced before it is touched. The piece at which that worker dies is halved; a sample at which it dies twice
alone is poison, and gets a row that says so. A death from outside costs a probe and never names a sample.
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
    span: tuple[int, int] | None = None  # indices that hold the poison, both included
    alone: int = 0  # deaths with the span down to one sample
    poison: set[int] = field(default_factory=set)


class PoisonDetector:
    """What deaths have told so far. window: samples a window."""

    def __init__(self, window: int) -> None:
        self._size = window
        self._windows: dict[tuple[str, int], _Window] = {}

    def died(self, heartbeats: Iterable[Heartbeat]) -> None:
        """A worker died with this in hand: each window is charged once, a probe's piece exactly."""
        exact_last = sorted(heartbeats, key=lambda beat: beat.probed)
        seen: dict[tuple[str, int], Heartbeat] = {(beat.shard, beat.window): beat for beat in exact_last}
        for place, beat in seen.items():
            suspect = self._windows.setdefault(place, _Window())
            suspect.deaths += 1
            if suspect.span and beat.probed:
                self._narrow(suspect, beat)
            elif suspect.deaths >= DEATHS_TO_SUSPECT and suspect.span is None:
                suspect.span = self._whole(beat.window)

    def _narrow(self, suspect: _Window, beat: Heartbeat) -> None:
        if (beat.first, beat.last) != suspect.span or beat.first != beat.last:
            suspect.alone = 0
        suspect.span = (beat.first, beat.last)
        if beat.first != beat.last:
            return
        suspect.alone += 1
        if suspect.alone >= DEATHS_ALONE:
            suspect.poison.add(beat.first)
            suspect.span, suspect.alone = self._whole(beat.window), 0

    def _whole(self, window: int) -> tuple[int, int]:
        return window * self._size, (window + 1) * self._size - 1

    def split(self, task: ShardTask) -> Iterator[ShardTask]:
        """The same windows as tasks: suspect ones as probes of their own, the rest as they were."""
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
        """The window stands on storage."""
        self._windows.pop((shard, window), None)
