"""Prometheus metrics of a run, through Ray: nothing to start, nothing to configure in a run.

Every node of a Ray exports the metrics of its own processes as text at `http://<node>:<port>/metrics`, some seconds
behind: the port is `ray start --metrics-export-port` (KubeRay sets 8080; `ray.nodes()` names it as MetricsExportPort
where it was left to chance), and Ray writes all of them for Prometheus' file discovery to
`/tmp/ray/prom_metrics_service_discovery.json` on the head. Needs `ray[default]` on the nodes, which Ray's own images
have; where it is missing, nothing is exported and a run goes on as it would.

All have the labels run (the output's name, and a hash of where it is), model and owner (who runs it), which tell apart
what runs on one cluster.

Of each worker, from its own node (label `WorkerId`); images and seconds of a killed worker's last second are lost:

    ray_diffseg_images_total{status}          rows made; labelled again after a loss, counted again
    ray_diffseg_windows_total                 windows committed
    ray_diffseg_busy_seconds_total            labelling: its rate is the share of time the device works
    ray_diffseg_waited_seconds_total{stage}   waiting instead, for task, read, decode or commit: see `stage_timer`

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

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from pipeline.driver.figures import FIGURES
from pipeline.worker.stage_timer import MetricsSnapshot

RUN = ("run", "model", "owner")  # labels of every metric


class WorkerMetrics:
    """A worker's snapshot as counters of its process. run: the labels of its run."""

    def __init__(self, run: Mapping[str, str]) -> None:
        self._run = run
        self._images = _Growing("diffseg_images_total", "Rows made, by status", "status")
        self._windows = _Growing("diffseg_windows_total", "Windows committed")
        self._busy = _Growing("diffseg_busy_seconds_total", "Seconds spent labelling")
        self._waited = _Growing("diffseg_waited_seconds_total", "Seconds labelling waited, by stage", "stage")

    def publish(self, snapshot: MetricsSnapshot) -> None:
        """Bring the counters up to a snapshot."""
        self._images.reach(snapshot.images, self._run)
        self._windows.reach({"": snapshot.windows}, self._run)
        self._busy.reach({"": snapshot.busy_s}, self._run)
        self._waited.reach(snapshot.waited_s, self._run)


class RunGauges:
    """What a driver knows, as gauges of the process that Ray is in: see `figures`."""

    def __init__(self) -> None:
        self._failures = _Growing("diffseg_failures_total", "Tasks that stopped short, by class of error", "kind")
        self._gauges = {name: Gauge(f"diffseg_{name}", text, RUN) for name, text in FIGURES.items()}

    def show(self, figures: Mapping[str, float | None], failures: Mapping[str, float], run: Mapping[str, str]) -> None:
        """Show a moment of a run, with its labels; a figure that is None is not known yet."""
        self._failures.reach(failures, run)
        for name, value in figures.items():
            if value is not None:
                self._gauges[name].set(value, dict(run))


class _Growing:
    """A counter that follows totals kept elsewhere, one for each run and value of its tag."""

    def __init__(self, name: str, text: str, tag: str | None = None) -> None:
        self._tag = tag
        self._counter = Counter(name, text, (*RUN, tag) if tag else RUN)
        self._reached: dict[tuple[str, str], float] = {}

    def reach(self, totals: Mapping[str, float], run: Mapping[str, str]) -> None:
        for value, total in totals.items():
            if (gained := total - self._reached.get((run["run"], value), 0.0)) > 0:
                self._counter.inc(gained, {**run, self._tag: value} if self._tag else dict(run))
                self._reached[run["run"], value] = total
