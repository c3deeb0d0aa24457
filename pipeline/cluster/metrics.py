"""Prometheus metrics of a run, through Ray: nothing to start, nothing to configure in a run.

`infra/README.md` lists them, and says where nodes export them. Needs `ray[default]` on the nodes, which Ray's own
images have; where it is missing, nothing is exported and a run goes on as it would.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from pipeline.driver.progress import FIGURES
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
    """What a driver knows, as gauges of the process that Ray is in: see `progress.FIGURES`."""

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
