"""Workers on a real Ray: the same rows however many there are, and none lost when one is killed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from diffseg.config import SegmentConfig
from pipeline.cluster import Cluster, RayPool
from pipeline.cluster.process.session import members
from pipeline.config import RunConfig
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters
from pipeline.errors import ConfigError, WorkerLost
from pipeline.inputs.shards import pin
from pipeline.labelling import open_run
from pipeline.run.verify import audit
from pipeline.worker.build import WorkerSettings
from tests.commands.test_cli import PHOTOS, small
from tests.conftest import write_shard

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        content = [(path.stem, {"jpg": small(path)}) for path in PHOTOS[4 * number : 4 * number + 4]]
        write_shard(folder / f"p-{number}.tar", content)
    return pin([str(folder / "p-*.tar")])


def begin(output, shards):
    return open_run(shards, str(output), "tiny", SegmentConfig(), RunConfig(window=2))


def workers_of(cluster):
    """Ids of its processes that label."""
    return [pid for pid in members(cluster.session) if b"LabelActor" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def rows(ledger):
    return list(ledger.rows())


@pytest.fixture(scope="module")
def one_worker(cluster, shards, tmp_path_factory):
    """The rows of a run with one worker."""
    ledger = begin(tmp_path_factory.mktemp("one"), shards)
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "tiny"), workers=1)
    drive(ledger, pool, ledger.missing(), Counters())
    pool.close()
    return rows(ledger)


def test_two_workers_give_the_rows_of_one_though_one_is_killed(cluster, shards, one_worker, tmp_path):
    ledger = begin(tmp_path / "two", shards)
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "tiny"), workers=2)
    counters, killed = Counters(), list[int]()

    def tick():
        if not killed and counters.windows:
            killed.append(workers_of(cluster)[0])
            os.kill(killed[0], signal.SIGKILL)

    drive(ledger, pool, ledger.missing(), counters, tick=tick)
    pool.close()

    assert killed
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert rows(ledger) == one_worker
    assert max(Counter((row["shard"], row["index"]) for row in one_worker).values()) == 1


def test_sigterm_drains_a_worker_and_its_work_goes_on_elsewhere(cluster, shards, one_worker, tmp_path):
    ledger = begin(tmp_path / "drained", shards)

    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "tiny"), workers=1)
    counters, drained = Counters(), list[int]()

    def tick():
        if not drained and counters.windows:
            drained.extend(workers_of(cluster))
            os.kill(drained[0], signal.SIGTERM)

    drive(ledger, pool, ledger.missing(), counters, tick=tick, max_attempts=1)
    pool.close()

    assert drained
    assert counters.lost_workers == 0
    assert rows(ledger) == one_worker


def test_a_model_no_worker_can_load_ends_the_run_with_one_line(cluster, shards, tmp_path):
    ledger = begin(tmp_path / "run", shards)
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, str(tmp_path / "elsewhere")), workers=1)
    with pytest.raises(WorkerLost, match=r"no worker can start: .*elsewhere"):
        drive(ledger, pool, ledger.missing(), Counters())
    pool.close()


def test_more_workers_than_gpus_are_refused(cluster, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "gpus", 2)
    with pytest.raises(ConfigError, match="3 workers asked for, this machine has 2 GPUs"):
        RayPool(cluster, WorkerSettings(str(tmp_path), "tiny"), workers=3)


def listeners(pids):
    """Addresses and ports on which processes of this machine take connections."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            sockets |= {str(held.readlink()) for held in Path(f"/proc/{pid}/fd").iterdir() if held.is_symlink()}
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if f"socket:[{inode}]" in sockets and (state == "0A" or kind.startswith("udp")):
                found.append(address_of(*local.split(":")))
    return found


def address_of(words, port):
    """As /proc/net has it: 32-bit words of the machine's own order, in hexadecimal."""
    data = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = ip_address(data)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens is looked up in /proc")
def test_nobody_else_reaches_a_private_ray(cluster):
    list(cluster.map(lambda number: number, [1]))  # so that workers are there too
    found = listeners(members(cluster.session))
    assert len(found) >= 6, "GCS, raylet, agents, workers"
    assert [(str(address), port) for address, port in found if not address.is_loopback] == []
    assert Path(cluster.folder).stat().st_mode & 0o777 == 0o700, "whoever cannot enter does not reach what is inside"
    inside = [path for path in Path(cluster.folder).rglob("*") if not path.is_symlink() and not path.is_dir()]
    assert len(inside) > 20
    assert {str(path) for path in inside if path.stat().st_mode & 0o077} == set()


@pytest.mark.parametrize("token", ["0" * 64, ""])
def test_without_its_token_nobody_learns_anything_of_a_private_ray(cluster, token):
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    script = f"from ray._raylet import GcsClient; GcsClient(address={cluster._began.gcs!r}).internal_kv_get(b'x', None)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **mode}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "token" in done.stderr.lower()


def test_workers_of_a_private_ray_are_where_the_command_was_run(cluster):
    [(folder, mask, environment)] = cluster.map(lambda _: (Path.cwd(), mask_of_this_process(), dict(os.environ)), [1])
    assert (folder, mask) == (Path.cwd(), mask_of_this_process())
    assert environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert "PYTHONSAFEPATH" not in environment


def mask_of_this_process():
    """What it takes from files that it makes."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_no_ray_at_an_address_is_one_line():
    with pytest.raises(ConfigError, match=r"no Ray at 127\.0\.0\.1:1"), Cluster("127.0.0.1:1"):
        pass


@pytest.fixture
def inverse():
    def inverse(number):  # defined here, so that it travels whole: no worker can import a test
        if number == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1 / number

    return inverse


def test_a_map_over_the_cluster_keeps_order_and_raises_what_was_raised(cluster, inverse):
    assert list(cluster.map(inverse, range(1, 9), in_flight=3)) == [1 / number for number in range(1, 9)]
    with pytest.raises(ZeroDivisionError):
        list(cluster.map(inverse, [1, 0, 2]))


def test_a_map_whose_processes_keep_dying_ends_with_one_line(cluster, inverse):
    with pytest.raises(WorkerLost, match="WorkerCrashedError"):
        list(cluster.map(inverse, [13]))
