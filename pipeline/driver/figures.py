"""A driver's run in numbers, for `cluster.metrics` to export."""

from collections.abc import Callable
from time import monotonic

from pipeline.driver.progress import Counters, Snapshot

FIGURES = {
    "images_left": "Images to be labelled, estimated",
    "bytes_left": "Bytes of the input that are not accounted for",
    "eta_seconds": "Seconds to the end, estimated",
    "images_per_second": "Images labelled a second, by all workers",
    "bare_images_per_second": "Images labelled a second if the workers never waited",
    "workers": "Workers that are ready",
    "cost": "Hours of workers times the price of one",
}


class Figures:
    """A run's figures. left_bytes: of the input; price: of a worker's hour."""

    def __init__(self, left_bytes: int, price: float | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._left_bytes, self._price, self._clock = left_bytes, price, clock
        self._worker_s = 0.0
        self._seen = clock()

    def at(self, snapshot: Snapshot, counters: Counters) -> dict[str, float | None]:
        """The figures of a moment, by name; None: not known yet. Workers ready now were ready since the last call."""
        now, workers = self._clock(), counters.ready_workers
        self._worker_s += workers * (now - self._seen)
        self._seen = now
        labelled = counters.rows - counters.failed.total()
        return {
            "images_left": None if snapshot.eta_s is None else snapshot.eta_s * snapshot.images_per_s,
            "bytes_left": max(0, self._left_bytes - counters.bytes_done),
            "eta_seconds": snapshot.eta_s,
            "images_per_second": snapshot.images_per_s,
            "bare_images_per_second": workers * labelled / counters.busy_s if counters.busy_s else None,
            "workers": workers,
            "cost": None if self._price is None else self._price * self._worker_s / 3600,
        }
