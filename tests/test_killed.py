"""A process killed at any step: after the rerun every sample has its row, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed import COUNTS, KILLED, POINTS

ROOT = Path(__file__).resolve().parents[1]
SOME = [
    "before the first window has its name",
    "after a later window has its name",
    "between the manifest and its mark",
]


def rerun(folder, points):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killed.py"), str(folder), *points],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def expect_whole(reports, points):
    assert [report["point"] for report in reports] == list(points)
    for report in reports:
        point = report.pop("point")
        whole = {"died": KILLED, "finished": 0, "rows": sum(COUNTS), "once": True, "faults": [], "missing": []}
        assert report == whole, point


def test_a_run_killed_while_it_commits_is_finished_by_the_next(tmp_path):
    expect_whole(rerun(tmp_path, SOME), SOME)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_at_any_step_is_finished_by_the_next(tmp_path):
    expect_whole(rerun(tmp_path, []), POINTS)
