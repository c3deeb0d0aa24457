"""Prometheus metrics of a run, through Ray: nothing to start, nothing to configure in a run.

Every node of a Ray exports the metrics of its own processes as text at `http://<node>:<port>/metrics`, some seconds
behind: the port is `ray start --metrics-export-port` (KubeRay sets 8080; `ray.nodes()` names it as MetricsExportPort
where it was left to chance), and Ray writes all of them for Prometheus' file discovery to
`/tmp/ray/prom_metrics_service_discovery.json` on the head. Needs `ray[default]` on the nodes, which Ray's own images
have; where it is missing, nothing is exported and a run goes on as it would.

Of each worker, from its own node (label `WorkerId`); images and seconds of a killed worker's last second are lost:

    ray_diffseg_images_total{status}          rows made; labelled again after a loss, counted again
    ray_diffseg_windows_total                 windows committed
    ray_diffseg_busy_seconds_total            labelling: its rate is the share of time the device works
    ray_diffseg_waited_seconds_total{stage}   waiting instead, for task, read, decode or commit: see `meter`

Of a driver, from the node it runs on; two drivers on one output differ by `WorkerId`:

    ray_diffseg_failures_total{kind}          tasks that stopped short, by class of error: WorkerLost, StorageError, ...
    ray_diffseg_images_per_second             labelled, by all workers, since the first
    ray_diffseg_bare_images_per_second        the same workers if they never waited: the ratio of both is the efficiency
    ray_diffseg_images_left                   estimated; absent until the first window is committed
    ray_diffseg_bytes_left                    of the input, exact to a window
    ray_diffseg_eta_seconds                   estimated; absent until the first window is committed
    ray_diffseg_workers                       that are ready
    ray_diffseg_cost                          their hours times the price that was given; absent without one
"""

from collections import Counter as Tallied
from collections.abc import Callable, Mapping
from time import monotonic

from ray.util.metrics import Counter, Gauge

from pipeline.meter import Reading
from pipeline.progress import Snapshot
from pipeline.tally import Tally


class WorkerMetrics:
    """A worker's meter as counters of its process."""

    def __init__(self) -> None:
        self._images = _Growing("diffseg_images_total", "Rows made, by status", "status")
        self._windows = _Growing("diffseg_windows_total", "Windows committed")
        self._busy = _Growing("diffseg_busy_seconds_total", "Seconds spent labelling")
        self._waited = _Growing("diffseg_waited_seconds_total", "Seconds labelling waited, by stage", "stage")

    def publish(self, reading: Reading) -> None:
        """Bring the counters up to a reading."""
        self._images.reach(reading.images)
        self._windows.reach({"": reading.windows})
        self._busy.reach({"": reading.busy_s})
        self._waited.reach(reading.waited_s)


class DriverMetrics:
    """What a driver knows, as gauges of its process. left_bytes: of the input; price: of a worker's hour."""

    def __init__(self, left_bytes: int, price: float | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._left_bytes, self._price, self._clock = left_bytes, price, clock
        self._failures = _Growing("diffseg_failures_total", "Tasks that stopped short, by class of error", "kind")
        self._gauges = {
            name: Gauge(f"diffseg_{name}", said)
            for name, said in (
                ("images_left", "Images to be labelled, estimated"),
                ("bytes_left", "Bytes of the input that are not accounted for"),
                ("eta_seconds", "Seconds to the end, estimated"),
                ("images_per_second", "Images labelled a second, by all workers"),
                ("bare_images_per_second", "The same if the workers never waited"),
                ("workers", "Workers that are ready"),
                ("cost", "Hours of workers times the price of one"),
            )
        }
        self._worker_s = 0.0
        self._seen = clock()

    def publish(self, snapshot: Snapshot, tally: Tally, workers: int) -> None:
        """Show a moment. workers: ready now, and taken to have been so since the last time."""
        now = self._clock()
        self._worker_s += workers * (now - self._seen)
        self._seen = now
        self._failures.reach(tally.failures)
        for name, value in self._figures(snapshot, tally, workers).items():
            if value is not None:
                self._gauges[name].set(value)

    def _figures(self, snapshot: Snapshot, tally: Tally, workers: int) -> dict[str, float | None]:
        labelled = tally.rows - tally.failed.total()
        return {
            "images_left": None if snapshot.eta_s is None else snapshot.eta_s * snapshot.images_per_s,
            "bytes_left": max(0, self._left_bytes - tally.bytes_done),
            "eta_seconds": snapshot.eta_s,
            "images_per_second": snapshot.images_per_s,
            "bare_images_per_second": workers * labelled / tally.busy_s if tally.busy_s else None,
            "workers": workers,
            "cost": None if self._price is None else self._price * self._worker_s / 3600,
        }


class _Growing:
    """A counter that follows totals kept elsewhere, one for each value of its tag."""

    def __init__(self, name: str, said: str, tag: str | None = None) -> None:
        self._tag = tag
        self._counter = Counter(name, said, (tag,) if tag else ())
        self._reached: Tallied[str] = Tallied()

    def reach(self, totals: Mapping[str, float]) -> None:
        for value, total in totals.items():
            if (gained := total - self._reached[value]) > 0:
                self._counter.inc(gained, {self._tag: value} if self._tag else None)
                self._reached[value] += gained  # type: ignore[assignment]
