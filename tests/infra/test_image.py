"""The image: its file is linted, its scripts do what they say, and its install steps run in a fresh folder."""

import fnmatch
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from jobs.shared import cli
from pipeline.errors import RayLost, WouldRepeat
from tests.support.processes import servers

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCRIPTS = sorted(INFRA.rglob("*.sh")) + sorted(INFRA.rglob("*.sbatch"))
DOCKERFILE = (INFRA / "Dockerfile").read_text()


def lint(tool, path):
    """What a linter says of a file; nothing where it is content."""
    found = servers.program(tool)
    if not found:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, str(path)], capture_output=True, text=True)
    return done.stdout if done.returncode else ""


def copied():
    """What the Dockerfile takes from the project."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M)
    return [word for line in lines for word in line.split()[:-1] if not word.startswith("--")]


def test_the_dockerfile_is_clean():
    assert lint("hadolint", INFRA / "Dockerfile") == ""


@pytest.mark.parametrize(
    ("sound", "planted", "rule"),
    [
        ("USER 10001:10001", "USER root", "DL3002"),
        ("FROM ubuntu:24.04", "FROM ubuntu:latest", "DL3007"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
    ],
)
def test_the_linter_of_the_dockerfile_sees_what_is_planted(sound, planted, rule, tmp_path):
    assert sound in DOCKERFILE
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace(sound, planted))
    assert rule in lint("hadolint", tmp_path / "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_clean(script):
    assert lint("shellcheck", script) == ""
    assert os.access(script, os.X_OK)


def test_the_linter_of_scripts_sees_what_is_planted(tmp_path):
    (tmp_path / "a.sh").write_text('#!/bin/sh\nrm -rf "$1"/*\ncd $2\n')
    assert "SC2086" in lint("shellcheck", tmp_path / "a.sh")


def test_the_image_takes_only_what_is_there_and_may_be_seen():
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied():
        assert any(fnmatch.fnmatch(source, pattern) for pattern in shown), source
        assert source == "weights" or (ROOT / source).exists(), source


def test_the_image_does_not_run_as_root_and_carries_a_health_check():
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.M)
    assert users == ["10001:10001"]
    assert DOCKERFILE.index("USER ") < DOCKERFILE.index("HEALTHCHECK")
    assert not re.search(r"^(ADD|ENV .*(KEY|SECRET|TOKEN))", DOCKERFILE, re.M)


@pytest.mark.parametrize(("ended", "told"), [(0, 0), (1, 1), (2, 0), (3, 0), (4, 0), (130, 130), (143, 143)])
def test_a_job_that_ended_for_good_is_not_started_over(ended, told):
    done = subprocess.run([INFRA / "job.sh", "sh", "-c", f"exit {ended}"], capture_output=True, text=True)
    assert done.returncode == told
    assert done.stderr.splitlines()[-1] == f"diffseg: exit code {ended}"


def test_a_job_that_stopped_where_the_same_command_resumes_is_started_over():
    stopped = 'touch "$DIFFSEG_RESUMES"; exit 4'
    done = subprocess.run([INFRA / "job.sh", "sh", "-c", stopped], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "diffseg: exit code 4"


@pytest.mark.parametrize(("error", "marked"), [(RayLost("gone"), True), (WouldRepeat("garbage"), False)])
def test_a_command_tells_its_job_whether_it_would_go_on(error, marked, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise error

    monkeypatch.setattr("pipeline.labelling.label", stopped)
    monkeypatch.setenv("DIFFSEG_RESUMES", str(tmp_path / "yes"))
    assert cli.run(["label", "s.tar", "--output", str(tmp_path / "run"), "--model", "tiny"]) == 4
    assert (tmp_path / "yes").exists() == marked


def test_a_job_hands_a_signal_on_and_waits_for_the_end():
    patient = "trap 'sleep 0.3; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    job = subprocess.Popen(
        [INFRA / "job.sh", "bash", "-c", patient], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    began = time.monotonic()
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=20)
    assert job.returncode == 143
    assert time.monotonic() - began >= 0.3
    assert "exit code 143" in told


class Agent(http.server.BaseHTTPRequestHandler):
    """A Ray node's own word on its health."""

    said = b"success"

    def do_GET(self):
        self.send_response(200 if self.said == b"success" else 503)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("said", "code"), [(b"success", 0), (b"raylet died", 1), (None, 0)])
def test_a_container_is_as_well_as_its_ray_node_or_else_as_its_command(said, code, tmp_path):
    if not shutil.which("wget"):
        pytest.skip("wget is not installed")
    [port] = servers.free_ports(1)
    (tmp_path / "diffseg").write_text("#!/bin/sh\n")
    (tmp_path / "diffseg").chmod(0o755)
    server = None
    if said is not None:
        handler = type("Said", (Agent,), {"said": said})
        server = http.server.HTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DIFFSEG_RAY_AGENT_PORT": str(port)}
    try:
        assert subprocess.run([INFRA / "healthcheck.sh"], env=environment, capture_output=True).returncode == code
    finally:
        if server:
            server.shutdown()
            server.server_close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_install_steps_give_a_whole_environment_in_a_fresh_folder(tmp_path):
    """As the Dockerfile runs them: dependencies without the code, then the code."""
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    first = DOCKERFILE[DOCKERFILE.index("COPY pyproject.toml") :].splitlines()[0].split()[1:-1]
    for name in first:
        shutil.copy(ROOT / name, source)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    for step in ("dependencies", "code"):
        if step == "code":
            ignore = shutil.ignore_patterns("__pycache__")
            for name in ("diffseg", "pipeline", "jobs"):
                shutil.copytree(ROOT / name, source / name, ignore=ignore)
        command = ["sh", "install.sh", step, str(venv)]
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (venv / "bin" / "pytest").exists()

    (tmp_path / "home").mkdir()
    command = [str(venv / "bin" / "diffseg"), "demo", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path / "home", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("*.html"))
    size = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"environment: {size / 1e9:.2f} GB")  # noqa: T201 - a figure of the runbook


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_locked_versions_exist_for_the_python_of_the_image(tmp_path):
    """Ubuntu 24.04 has Python 3.12; the lock file was written by another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [names] = re.findall(r"'\.\[([\w,]+)\]'", (INFRA / "install.sh").read_text())
    wanted = project["dependencies"] + [
        one for name in names.split(",") for one in project["optional-dependencies"][name]
    ]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--python-version=3.12"]
    command += ["--only-binary=:all:", f"--target={tmp_path}", "-c", str(ROOT / "constraints.txt"), *wanted]
    assert "ubuntu24.04" in DOCKERFILE
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
