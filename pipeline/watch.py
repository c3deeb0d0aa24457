"""A watchdog: a driver that waits without any progress is stopped with a reason."""

from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic

from pipeline.errors import Stopped

LEAST_S = 2.0  # the shortest sensible setting: workers answer once a second
SILENCE_S = 120.0  # without progress, by default
# Called wherever a long read moves, be it without a sample; each thread that reads for a worker sets its own
beat: ContextVar[Callable[[], None]] = ContextVar("beat", default=lambda: None)


class Watch:
    """Counts the time spent in its `with` blocks, which wait for answers, since the last progress.

    silence_s: seconds of it after which `check` raises.
    """

    def __init__(self, silence_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.silence_s = silence_s
        self._clock = clock
        self._silent_s, self._entered = 0.0, clock()
        self._last = "the start"

    def __enter__(self) -> None:
        self._entered = self._clock()

    def __exit__(self, *_: object) -> None:
        self._silent_s += self._clock() - self._entered

    def moved(self, what: str) -> None:
        """Note progress: the count begins again. what: completes "the last that came was ..."."""
        self._silent_s, self._entered, self._last = 0.0, self._clock(), what

    def check(self, awaited: str) -> None:
        """Raises Stopped where there was no progress for too long. awaited: what should have come."""
        silent_s = self._silent_s + self._clock() - self._entered
        if silent_s > self.silence_s:
            raise Stopped(
                f"nothing moved for {silent_s:.0f} s (--stall): {awaited}; the last that came was {self._last}"
            )
