"""The runbook of clusters: what can be run here is run as written, what cannot at least names what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.shared import cli
from tests.infra.test_infra import INFRA

RUNBOOK = (INFRA / "README.md").read_text()
BLOCKS = re.findall(r"^```sh( here)?\n(.*?)^```", RUNBOOK, re.M | re.S)
HERE = [text for here, text in BLOCKS if here]
ELSEWHERE = [text for here, text in BLOCKS if not here]


def commands():
    """Every call of `diffseg`: its command and the words behind it."""
    whole = "\n".join(text for _, text in BLOCKS).replace("\\\n", " ")
    for name, rest in re.findall(r"(?:^|--\s+(?:diffseg-job\s+)?)diffseg\s+(\w+)(.*)$", whole, re.M):
        yield name, rest.split()


def test_every_command_and_flag_of_the_runbook_exists(capsys):
    seen = set()
    for name, rest in commands():
        assert cli.run([name, "--help"]) == 0
        shown = capsys.readouterr().out
        for flag in (word for word in rest if word.startswith("--")):
            assert flag in shown, f"{name} {flag}"
        seen.add(name)
    assert seen == {"fetch", "pilot", "plan", "label", "status", "verify", "preview"}


def test_every_file_the_runbook_names_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", RUNBOOK)
    paths = re.findall(r"\binfra/[\w./-]+", " ".join(ELSEWHERE))
    assert links
    assert paths
    for path in [*(INFRA / link for link in links), *(INFRA.parent / path for path in paths)]:
        assert path.exists(), path


def test_every_exit_code_is_explained():
    for code in ("0", "2", "3", "4", "130, 143"):
        assert re.search(rf"^\| {code}\b", RUNBOOK, re.M)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_what_can_be_followed_here_leads_where_it_says_in_a_fresh_folder(tmp_path):
    if not Path(sys.executable).with_name("ray").exists():
        pytest.skip("the commands are not beside this Python")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    script = "set -euo pipefail\n" + "\n".join(HERE)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Job 'first' was stopped" in done.stdout
    assert "complete: 11 rows, 11 ok" in done.stdout
    assert "verified: 11 rows" in done.stdout
    assert (tmp_path / "first.html").stat().st_size > 100_000
