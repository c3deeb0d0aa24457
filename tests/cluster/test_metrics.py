"""What Prometheus finds at a node of Ray while a run goes on."""

import contextlib
import importlib.util
import re
import time
import urllib.request

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.cluster import Cluster, RayPool
from pipeline.driver.figures import Figures
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters, Progress
from pipeline.inputs.shards import pin
from pipeline.run.ledger import Ledger
from pipeline.worker.build import WorkerSettings
from pipeline.worker.worker import Worker

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
    """Sums over processes, by the name with the tags that are ours."""
    with urllib.request.urlopen(address, timeout=5) as reply:
        text = reply.read().decode()
    sums: dict[str, float] = {}
    for name, tags, value in re.findall(r"^(ray_diffseg_\w+)\{(.*)\} (\S+)$", text, flags=re.M):
        ours = re.findall(r'\b(?:status|stage|kind)="[^"]*"', tags)
        sums[name + (f"{{{ours[0]}}}" if ours else "")] = sums.get(name, 0.0) + float(value)
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


def test_a_run_is_seen_by_prometheus_with_the_values_it_has(ledger, shards, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "in" / "s-2.tar").unlink()  # pinned, and gone: its task stops short

    def build(settings: WorkerSettings) -> Worker:
        return Worker(Ledger.open(settings.output), FakeSegmenter(seconds=0.01, batch_size=2))

    with Cluster() as cluster:
        [address] = cluster.look().metrics
        pool = RayPool(cluster, WorkerSettings(ledger.store.url, "fake"), workers=1, build=build)
        counters, left = Counters(), sum(shard.size for shard in pin([str(tmp_path / "in" / "*.tar")]))
        progress, figures = Progress(left), Figures(left, price=3600.0)

        def tick() -> None:
            moment = progress.snapshot(counters)
            cluster.show(figures.at(moment, counters), counters.failures)

        drive(ledger, pool, ledger.missing(), counters, max_attempts=1, tick=tick)
        tick()
        found = wait_for(address, "ray_diffseg_windows_total", 5)
        found |= wait_for(address, 'ray_diffseg_failures_total{kind="ShardChanged"}', 1)
        pool.close()

    assert found['ray_diffseg_images_total{status="ok"}'] == 17
    assert found["ray_diffseg_windows_total"] == 5
    assert found["ray_diffseg_busy_seconds_total"] >= 0.17
    assert found['ray_diffseg_failures_total{kind="ShardChanged"}'] == 1
    waited = {name for name in found if name.startswith("ray_diffseg_waited_seconds_total")}
    assert 'ray_diffseg_waited_seconds_total{stage="task"}' in waited  # it started before it was given anything
    assert found["ray_diffseg_workers"] == 1
    assert found["ray_diffseg_cost"] > 0
    assert found["ray_diffseg_bare_images_per_second"] == pytest.approx(17 / counters.busy_s)
    assert found["ray_diffseg_bytes_left"] < left
    assert {"ray_diffseg_images_left", "ray_diffseg_eta_seconds", "ray_diffseg_images_per_second"} <= found.keys()
