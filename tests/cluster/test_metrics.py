"""What Prometheus finds at a node of Ray while a run goes on."""

import contextlib
import importlib.util
import re
import time
import urllib.request

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.cluster import Cluster, RayPool
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters, Figures, Progress
from pipeline.logs.context import bound
from pipeline.run.ledger import Ledger
from pipeline.worker.build import WorkerSettings
from pipeline.worker.worker import Worker
from tests.conftest import a_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("prometheus_client", "opencensus")),
        reason="ray[default] is not installed: nothing exports metrics",
    ),
]


def exported(address: str) -> dict[str, float]:
    """Sums over processes, by the name with the tags that are ours: the run, and what a metric tells apart."""
    with urllib.request.urlopen(address, timeout=5) as reply:
        text = reply.read().decode()
    sums: dict[str, float] = {}
    for name, tags, value in re.findall(r"^(ray_diffseg_\w+)\{(.*)\} (\S+)$", text, flags=re.M):
        ours = dict(re.findall(r'\b(run|model|owner|status|stage|kind)="([^"]*)"', tags))
        assert (ours.pop("model"), ours.pop("owner")) == ("fake", "ada")
        place = ours.pop("run") + " " + name.removeprefix("ray_diffseg_") + "".join(f" {tag}" for tag in ours.values())
        sums[place] = sums.get(place, 0.0) + float(value)
    return sums


def wait_for(address: str, name: str, value: float) -> dict[str, float]:
    """The metrics when one of them has reached a value; what is there after a minute where it never does."""
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while time.monotonic() < deadline and found.get(name) != value:
        with contextlib.suppress(OSError):  # the agent is still starting
            found = exported(address)
        time.sleep(0.5)
    return found


def test_two_runs_on_one_ray_are_seen_by_prometheus_each_with_the_values_it_has(ledger, shards, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "in" / "s-2.tar").unlink()  # pinned, and gone: its task stops short
    other = Ledger.start(str(tmp_path / "other"), a_run(), shards[:1])
    left = sum(shard.size for shard in shards[:2])

    def build(settings: WorkerSettings) -> Worker:
        return Worker(Ledger.open(settings.output), FakeSegmenter(seconds=0.01, batch_size=2))

    with Cluster() as cluster:
        [address] = cluster.look().metrics

        def label(run: Ledger) -> tuple[Counters, RayPool]:
            counters = Counters()
            progress, figures = Progress(left), Figures(left, price=3600.0)

            def tick() -> None:
                cluster.show(figures.at(progress.snapshot(counters), counters), counters.failures)

            pool = RayPool(cluster, WorkerSettings(run.store.url, "fake"), workers=1, build=build)
            drive(run, pool, run.missing(), counters, max_attempts=1, tick=tick)
            tick()
            return counters, pool

        with bound(run="first", model="fake", owner="ada"):
            counters, pool = label(ledger)
            found = wait_for(address, "first windows_total", 5)
            found |= wait_for(address, "first failures_total ShardChanged", 1)
            pool.close()
        with bound(run="second", model="fake", owner="ada"):
            _, pool = label(other)
            both = wait_for(address, "second windows_total", 3)
            pool.close()

    assert found["first images_total ok"] == 17
    assert found["first windows_total"] == 5
    assert found["first busy_seconds_total"] >= 0.17
    assert found["first failures_total ShardChanged"] == 1
    assert "first waited_seconds_total task" in found  # it started before it was given anything
    assert found["first workers"] == 1
    assert found["first cost"] > 0
    assert found["first bare_images_per_second"] == pytest.approx(17 / counters.busy_s)
    assert found["first bytes_left"] < left
    assert {"first images_left", "first eta_seconds", "first images_per_second"} <= found.keys()
    assert both["second images_total ok"] == 10
    assert "second failures_total ShardChanged" not in both
    assert both["second bytes_left"] > found["first bytes_left"]  # of one shard of the two
