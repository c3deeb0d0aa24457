"""Nodes that are about to go, on a real Ray of several nodes: what is in work there is finished or abandoned whole."""

import json
import subprocess
import time

import clusters
import pytest
from conftest import samples, write_shard

from pipeline.audit import audit
from pipeline.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(400)]

NODE_OF = """
import ray
ray.init(address="{address}", logging_level="ERROR", log_to_driver=False)
for node in ray.nodes():
    print("node", node["NodeID"], node["MetricsExportPort"], int(node["Alive"]), flush=True)
"""


@pytest.fixture
def shards(tmp_path):
    for number in range(6):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(48, first=1000 * number))
    return str(tmp_path / "in" / "s-*.tar")


def label(cluster, shards, output):
    command = [
        "label",
        shards,
        "--output",
        str(output),
        "--model",
        "tiny",
        "--window",
        "16",
        "--json",
        "--device",
        "cpu",
    ]
    command = [str(clusters.BIN / "diffseg"), *command, "--workers", "2", "--ray-address", f"127.0.0.1:{cluster.port}"]
    return subprocess.Popen(command, env=cluster.environment, cwd=cluster.folder, stdout=subprocess.PIPE, text=True)


def wait_for(what, wait_s=120):
    end = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


def windows(output):
    return len(list(output.glob("labels/*.parquet")))


def node_id(cluster, node):
    said = cluster.run("python", "-c", NODE_OF.format(address=f"127.0.0.1:{cluster.port}")).stdout
    found = [line.split() for line in said.splitlines() if line.startswith("node ")]
    return next(name for _, name, port, _ in found if int(port) == node.metrics_port)


@pytest.mark.parametrize("drained", [True, False])
def test_a_node_that_goes_loses_no_row_and_leaves_within_its_grace(drained, shards, tmp_path):
    with clusters.cluster({"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}) as cluster:
        going, _ = cluster.worker(), cluster.worker()
        output = tmp_path / "run"
        driver = label(cluster, shards, output)
        wait_for(lambda: windows(output) >= 4)
        began = time.monotonic()
        if drained:
            name = node_id(cluster, going)
            asked = ["--node-id", name, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
            address = f"127.0.0.1:{cluster.port}"
            cluster.run("ray", "drain-node", "--address", address, *asked, "--deadline-remaining-seconds", "30")
            time.sleep(6)  # the notice comes before the signal
        sent = time.monotonic()
        going.terminate()
        going.process.wait(timeout=60)
        left = time.monotonic() - sent
        said, _ = driver.communicate(timeout=200)

    result = json.loads(said)
    how = f"drained first: {drained}; the node left {left:.1f} s after SIGTERM"
    lost = f"workers lost {result['lost_workers']}, windows wasted {result['wasted_windows']}"
    print(f"{how}; {lost}; driver done after {time.monotonic() - began:.0f} s")  # noqa: T201 - a figure that is asked for
    assert driver.returncode == 0
    assert result["ok"] == 6 * 48
    assert left < 30
    if drained:
        assert result["lost_workers"] == 0, "the worker left before its node did"
    assert [fault for shard in audit(Ledger.open(str(output)), full=True) for fault in shard.faults] == []
