"""A process killed at any step: after the rerun every sample has its row, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.killed import COUNTS, IN_A_BUCKET, KILLED, points

ROOT = Path(__file__).resolve().parents[2]
SOME = [
    "before the first window has its name",
    "after a later window has its name",
    "between the manifest and its mark",
]
NEAR_A_STORE = [  # where a bucket is another thing than a disk
    *("after run.json", "at the probe", "before the inputs are pinned", "after the inputs are pinned"),
    *("reading a range", "after the end of the last shard", "between the manifest and its mark", *IN_A_BUCKET),
]


def expect_whole(place, chosen=()):
    """Kill and finish a run at each point."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "processes" / "killed.py"), str(place), *chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["point"] for report in reports] == list(chosen or points(str(place))), done.stderr
    for report in reports:
        point = report.pop("point")
        whole = {"died": KILLED, "finished": 0, "rows": sum(COUNTS), "once": True, "faults": [], "missing": []}
        assert report == whole, point


def test_a_run_killed_while_it_commits_is_finished_by_the_next(tmp_path):
    expect_whole(tmp_path, SOME)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_at_any_step_is_finished_by_the_next(tmp_path):
    expect_whole(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_in_a_bucket_killed_at_any_step_of_a_commit_is_finished_by_the_next(place):
    expect_whole(place, NEAR_A_STORE)
