"""Workers on a real Ray: the same rows however many there are, and none lost when one is killed."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_shard
from test_cli import PHOTOS, small

from diffseg.config import SegmentConfig
from pipeline.actor import Cluster, RayPool
from pipeline.actor.session import members
from pipeline.audit import audit
from pipeline.config import RunConfig
from pipeline.driver import drive
from pipeline.errors import ConfigError, WorkerLost
from pipeline.labelling import open_run
from pipeline.shards import pin
from pipeline.tally import Tally
from pipeline.worker import WorkerSettings

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
    drive(ledger, pool, ledger.missing(), Tally())
    pool.close()
    return rows(ledger)


def test_two_workers_give_the_rows_of_one_though_one_is_killed(cluster, shards, one_worker, tmp_path):
    ledger = begin(tmp_path / "two", shards)
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "tiny"), workers=2)
    tally, killed = Tally(), []

    def tick():
        if not killed and tally.windows:
            killed.append(workers_of(cluster)[0])
            os.kill(killed[0], signal.SIGKILL)

    drive(ledger, pool, ledger.missing(), tally, tick=tick)
    pool.close()

    assert killed
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert rows(ledger) == one_worker
    assert max(Counter((row["shard"], row["index"]) for row in one_worker).values()) == 1


def test_sigterm_drains_a_worker_and_its_work_goes_on_elsewhere(cluster, shards, one_worker, tmp_path):
    ledger = begin(tmp_path / "drained", shards)

    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "tiny"), workers=1)
    tally, drained = Tally(), []

    def tick():
        if not drained and tally.windows:
            drained.extend(workers_of(cluster))
            os.kill(drained[0], signal.SIGTERM)

    drive(ledger, pool, ledger.missing(), tally, tick=tick, max_attempts=1)
    pool.close()

    assert drained
    assert tally.lost_workers == 0
    assert rows(ledger) == one_worker


def test_a_model_no_worker_can_load_ends_the_run_with_one_line(cluster, shards, tmp_path):
    ledger = begin(tmp_path / "run", shards)
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, str(tmp_path / "elsewhere")), workers=1)
    with pytest.raises(WorkerLost, match=r"no worker can start: .*elsewhere"):
        drive(ledger, pool, ledger.missing(), Tally())
    pool.close()


def test_more_workers_than_gpus_are_refused(cluster, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Cluster, "gpus", 2)
    with pytest.raises(ConfigError, match="3 workers asked for, this machine has 2 GPUs"):
        RayPool(cluster, WorkerSettings(str(tmp_path), "tiny"), workers=3)


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
