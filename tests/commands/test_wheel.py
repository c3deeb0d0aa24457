"""The wheel in an environment of its own, run where modules are called like ours, a dependency's and Python's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import diffseg
from pipeline.searchpath import ROOT
from tests.cluster.test_searchpath import write_hostile
from tests.conftest import jpeg, write_shard
from tests.support.truths import png

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
SOURCES = ("diffseg", "pipeline", "jobs")
FILES = ("pyproject.toml", "README.md", "LICENSE")
KEYS = [f"{n:03d}" for n in range(6)]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The script `diffseg` of an environment that has the wheel, and sees what this one has installed."""
    source, wheels, venv = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "venv"))
    for name in SOURCES:
        shutil.copytree(Path(ROOT) / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(Path(ROOT) / name, source)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", str(source), "-w", str(wheels)], check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    [site] = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    install = [*pip, "--python", str(venv / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True, timeout=120)
    return str(venv / "bin" / "diffseg")


@pytest.fixture
def work(tmp_path):
    """A folder to work in, with shards, their truth and a model."""
    write_shard(tmp_path / "in" / "s.tar", [(key, {"jpg": jpeg(n, (96, 64))}) for n, key in enumerate(KEYS)])
    halves = png([[0] * 48 + [1] * 48] * 64)
    write_shard(tmp_path / "truth" / "s.tar", [(key, {"seg.png": halves}) for key in KEYS])
    shutil.copytree(Path(diffseg.__file__).parent / "tiny", tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("path", [{"PYTHONPATH": "."}, {}], ids=["PYTHONPATH", "folder"])
def test_label_evaluate_and_export_among_a_users_modules(command, work, path):
    write_hostile(work)
    if not path:  # what Python and pip's script import before anything of ours
        for name in ("types", "enum", "re", "site", "os"):
            (work / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')\n")
    temporary = work / ("a long name of a folder" * 4)
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | path

    def run(*words):
        done = subprocess.run(
            [command, *words], cwd=work, capture_output=True, text=True, timeout=300,
            env={**environment, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "complete: 6 rows, 6 ok" in run(
        "label", "in/s.tar", "--output", "out", "--model", "./model", "--workers", "2"
    )
    assert "| run" in run("evaluate", "out", "--truth", "truth/s.tar", "--processes", "2")
    assert "6 images" in run("export", "out", "--format", "png", "--output", "png", "--ray-address", "local")
    assert len(list((work / "png").rglob("*.png"))) == 6
    modes = {oct(file.stat().st_mode & 0o777) for file in (work / "out" / "labels").iterdir()}
    assert modes == {oct((work / "in" / "s.tar").stat().st_mode & 0o777)}, "as other files of this user"
