"""Any process of a run's Ray may be killed at any moment: the run goes on, or stops with 4 and one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid

import pytest

from pipeline.cluster import Cluster
from tests.commands.test_signals import MARK, left_behind
from tests.conftest import jpeg, write_shard
from tests.support.processes import clusters
from tests.support.processes.deaths import IMAGES, WINDOW, found, kill

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
AIM_S = 60.0  # in which a run goes on, on a machine that has nothing else to do
LONGER = 240  # images that outlast what goes on by itself for seconds after a loss
THIRD = (
    80  # images: with two workers the last of three windows is labelled alone, and takes longer than a loss is found
)
slow = pytest.mark.slow


def say(death):
    print(death.line(), end="")  # noqa: T201 - figures are asked for


@pytest.mark.slow
def test_a_map_goes_on_when_the_raylet_of_a_private_ray_is_killed(tmp_path):
    def inverse(number):
        if number == 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)  # who started this process
        return 1 / number

    notes: list[str] = []
    with Cluster(note=notes.append) as cluster:
        assert list(cluster.map(inverse, range(1, 6), in_flight=2)) == [1 / number for number in range(1, 6)]
    assert [note.partition(";")[0] for note in notes] == ["the private Ray: its raylet is gone"]


@slow
@pytest.mark.parametrize(
    ("process", "moment"),
    [
        ("raylet", "mid-run"),
        ("GCS", "mid-run"),
        ("dashboard agent", "mid-run"),
        ("runtime env agent", "mid-run"),
        ("host", "mid-run"),
        ("raylet", "start-up"),
        ("GCS", "start-up"),
        ("GCS", "last window"),
    ],
)
def test_a_run_whose_ray_loses_a_process_goes_on_with_a_fresh_one(process, moment):
    images = LONGER if (process, moment) in [("raylet", "mid-run"), ("GCS", "last window")] else IMAGES
    window = THIRD if moment == "last window" else WINDOW
    death = kill(process, moment, "--json", images=images, window=window)
    say(death)
    assert death.code == 0
    assert death.said.count("it is started again") == 1
    assert '"lost_workers": 0' in death.said
    assert death.rows == images
    assert (death.twice, death.left) == (0, [])
    assert death.still_s < AIM_S + 30


@slow
@pytest.mark.parametrize("process", ["actor", "dashboard", "log monitor", "autoscaler monitor"])
def test_a_run_goes_on_without_a_process_that_it_does_not_rest_on(process):
    death = kill(process, "mid-run")
    say(death)
    assert death.code == 0
    assert "it is started again" not in death.said
    assert (death.rows, death.twice, death.left) == (IMAGES, 0, [])


@slow
@pytest.mark.parametrize("moment", ["start-up", "mid-run"])
def test_a_driver_that_is_killed_leaves_nothing_but_what_the_same_command_finishes(moment):
    death = kill("driver", moment)
    say(death)
    assert (death.code, death.rerun) == (-signal.SIGKILL, 0)
    assert (death.rows, death.twice, death.left) == (IMAGES, 0, [])


@slow
@pytest.mark.parametrize("process", ["raylet", "GCS"])
def test_a_run_on_a_cluster_that_loses_a_process_stops_with_a_line_that_names_it(process):
    mark = uuid.uuid4().hex
    with clusters.cluster({MARK: mark}, cpus=2) as there:
        address = f"127.0.0.1:{there.port}"
        death = kill(process, "mid-run", "--ray-address", address, cluster=(mark, there.environment))
    say(death)
    assert death.code == 4
    [line] = [line for line in death.said.splitlines() if line.startswith("diffseg: ")]
    # `ray start --block` ends everything on its node once one of its processes is gone
    lost = rf"diffseg: stopped: the Ray at {address}: its (raylet|{process}) is gone; the same command resumes"
    assert re.fullmatch(lost, line)
    assert "started again" not in death.said
    assert death.ended_s < AIM_S + 30
    assert (death.rerun, death.rows, death.twice, death.left) == (0, IMAGES, 0, [])


def label(folder, *options, environment=os.environ):
    """A run, begun."""
    shard = write_shard(folder / "in" / "s.tar", [(f"{n:03d}", {"jpg": jpeg(n, (192, 128))}) for n in range(IMAGES)])
    words = [
        sys.executable,
        "-m",
        "jobs.shared.cli",
        "label",
        str(shard),
        "--output",
        str(folder / "run"),
        "--model",
        "tiny",
    ]
    return subprocess.Popen(
        [*words, "--window", "4", "--workers", "1", "--json", *options],
        env={**environment, MARK: folder.name, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@slow
def test_a_cluster_without_room_for_any_worker_is_a_stop_with_a_reason(tmp_path):
    with clusters.cluster({}) as there:
        began = time.monotonic()
        address = ["--ray-address", f"127.0.0.1:{there.port}", "--device", "cpu"]
        command = label(tmp_path, *address, "--stall", "15", environment=there.environment)
        _, said = command.communicate(timeout=120)
        print(f"{time.monotonic() - began:.0f} s: {said.splitlines()[-1]}")  # noqa: T201 - a figure that is asked for
    assert command.returncode == 4
    assert "(--stall): workers asked for: 1, ready: 0, and no answer from any" in said.splitlines()[-1]


@slow
@pytest.mark.parametrize(
    ("process", "lost_workers", "told"),
    [("actor", 1, ""), ("host", 0, "does not answer for 45 s; it is started again")],
)
def test_a_process_that_stands_still_is_replaced(tmp_path, process, lost_workers, told):
    command = label(tmp_path, "--stall", "20")
    due = time.monotonic() + 120
    while not list(tmp_path.glob("run/labels/*.parquet")):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < due
        time.sleep(0.1)
    [pid] = found(process, tmp_path.name)
    os.kill(pid, signal.SIGSTOP)
    result, said = command.communicate(timeout=300)
    assert command.returncode == 0, said
    assert json.loads(result)["lost_workers"] == lost_workers
    assert json.loads(result)["ok"] == IMAGES
    assert told in said
    assert left_behind(tmp_path.name) == {}
