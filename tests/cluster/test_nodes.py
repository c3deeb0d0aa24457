"""Nodes that come and go on a real Ray: who is on one that is to go leaves in time, and one that joins gets work."""

import json
import subprocess
import time

import pytest

from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from tests.conftest import samples, write_shard
from tests.support.processes import clusters

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(400)]
SHARDS, IMAGES = 6, 48

NODES = """
import ray
ray.init(address="{address}", logging_level="ERROR", log_to_driver=False)
for node in ray.nodes():
    print("node", node["NodeID"], node["MetricsExportPort"], flush=True)
"""


@pytest.fixture
def shards(tmp_path):
    for number in range(SHARDS):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(IMAGES, first=1000 * number))
    return str(tmp_path / "in" / "s-*.tar")


@pytest.fixture(scope="module")
def cluster():
    """A head and one worker of one CPU."""
    with clusters.cluster({}) as cluster:
        cluster.worker()
        yield cluster


def label(cluster, shards, output):
    """`diffseg label` with as many workers as there is room for."""
    asked = ["--model", "tiny", "--window", "8", "--json", "--device", "cpu"]
    asked += ["--ray-address", f"127.0.0.1:{cluster.port}"]
    command = [str(clusters.BIN / "diffseg"), "label", shards, "--output", str(output), *asked]
    return subprocess.Popen(command, env=cluster.environment, cwd=cluster.folder, stdout=subprocess.PIPE, text=True)


def wait_for_windows(output, count):
    end = time.monotonic() + 150
    while len(list(output.glob("labels/*.parquet"))) < count:
        assert time.monotonic() < end
        time.sleep(0.2)


def attempts(ledger):
    """The processes that committed its windows."""
    return {ledger.window_metadata(window).attempt for window in ledger.windows()}


def concluded(driver, output):
    """What the driver says in the end; every sample has its row."""
    said, _ = driver.communicate(timeout=250)
    assert driver.returncode == 0
    result = json.loads(said)
    assert result["ok"] == SHARDS * IMAGES
    assert [fault for shard in audit(Ledger.open(str(output)), full=True) for fault in shard.faults] == []
    return result


def test_a_node_that_joins_gets_work(cluster, shards, tmp_path):
    driver = label(cluster, shards, tmp_path / "run")
    wait_for_windows(tmp_path / "run", 2)
    cluster.worker()
    concluded(driver, tmp_path / "run")
    assert len(attempts(Ledger.open(str(tmp_path / "run")))) == 2


def test_a_worker_leaves_its_node_before_the_node_goes(cluster, shards, tmp_path):
    going = cluster.nodes[1]
    driver = label(cluster, shards, tmp_path / "run")
    wait_for_windows(tmp_path / "run", 4)
    said = cluster.run("python", "-c", NODES.format(address=f"127.0.0.1:{cluster.port}")).stdout
    known = [line.split() for line in said.splitlines() if line.startswith("node ")]
    name = next(node for _, node, port in known if int(port) == going.metrics_port)
    notice = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "30",
    ]
    address = f"127.0.0.1:{cluster.port}"
    cluster.run("ray", "drain-node", "--address", address, "--node-id", name, *notice)
    time.sleep(8)
    going.kill()
    result = concluded(driver, tmp_path / "run")
    assert result["lost_workers"] == 0
    print(f"windows made twice: {result['wasted_windows']}")  # noqa: T201 - a figure that is asked for
