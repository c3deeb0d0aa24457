"""A user's modules that are called like ours, like a dependency's or like Python's own are not taken for them."""

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.parallel import parallel_mapping
from pipeline.searchpath import ROOT, child_environment, own_first, settle
from tests.conftest import SHARED

ENTRY = Path(ROOT) / "jobs" / "entry"
NAMES = ("jobs", "pipeline", "diffseg", "ray", "torch", "typer", "numpy", "random", "json", "tempfile")


def write_hostile(folder, as_packages=False):
    """Modules that end whoever imports them."""
    for name in NAMES:
        file = folder / name / "__init__.py" if as_packages else folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"raise SystemExit('the {name} of the user was imported')\n")
    return folder


@pytest.mark.parametrize(
    ("path", "as_packages"), [({"PYTHONPATH": "."}, False), ({}, False), ({"PYTHONPATH": ":"}, True)]
)
def test_the_command_finds_its_own_packages(tmp_path, path, as_packages):
    hostile = write_hostile(tmp_path / "work", as_packages)
    script = f"import sys; sys.path.append({str(ENTRY)!r}); from diffseg_command import main; main()"
    console = tmp_path / "bin" / "diffseg"
    console.parent.mkdir()
    console.write_text(script)
    done = subprocess.run(
        [sys.executable, str(console), "status", "nowhere"],
        cwd=hostile, env={**os.environ, **path}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"diffseg: {hostile}/nowhere: no run here (there is no run.json)\n"


def test_modules_called_pipeline_and_jobs_on_pythonpath_are_left_alone():
    folder = SHARED / "cases" / "l2_modules_named_pipeline_and_jobs"
    if not folder.is_dir():
        pytest.skip("the cases beside the project are not here")
    script = f"import sys; sys.path.append({str(ENTRY)!r}); from diffseg_command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"],
        cwd=folder, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_what_pythonpath_names_comes_last_and_the_folder_of_the_command_not_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "/more"]))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/more", "/stdlib", "/site"])
    assert own_first() == ["/stdlib", "/site", ROOT, str(tmp_path), "/more"]
    monkeypatch.setattr(sys, "path", own_first())
    assert own_first() == sys.path, "a second time changes nothing"


def test_packages_that_only_pythonpath_names_are_found_after_all_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), ROOT]))
    monkeypatch.setattr(sys, "path", [str(tmp_path), ROOT, "/stdlib"])
    assert own_first() == ["/stdlib", ROOT, str(tmp_path)], "ours, wherever they are, before a user's"


def test_an_installed_command_without_pythonpath_gives_its_children_none(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(site, "getsitepackages", lambda: [ROOT])
    assert child_environment() == {"PYTHONSAFEPATH": "1", "DIFFSEG_BEFORE_PYTHONSAFEPATH": ""}


def test_a_child_that_settles_has_the_environment_the_folder_and_the_umask_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.chdir(tmp_path)
    script = """
import os, sys
from pipeline.searchpath import settle
before = os.getcwd()
settle()
settle()
mask = os.umask(0)
ours = [name for name in os.environ if name.startswith(("DIFFSEG_", "PYTHONSAFE"))]
print(before, os.getcwd(), oct(mask), os.environ["PYTHONPATH"], ours)
"""
    before = os.umask(0o027)
    try:
        given = child_environment(moved=True)
    finally:
        os.umask(before)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env={**os.environ, **given}, umask=0o077,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split(maxsplit=4) == ["/", str(tmp_path), "0o27", ".", "[]\n"]


def test_a_folder_that_is_gone_keeps_nobody_from_starting(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setenv("PYTHONPATH", "/more")
    assert own_first()[-1] == "/more"
    for name, value in child_environment(moved=True).items():
        monkeypatch.setenv(name, value)
    settle()


def where_it_is(name):
    """In a child: the file of a module, and what is left of the environment it was begun with."""
    module = __import__(name)
    return module.__file__, os.environ.get("PYTHONPATH"), os.environ.get("PYTHONSAFEPATH")


def test_processes_of_this_machine_find_the_modules_of_their_parent(tmp_path, monkeypatch):
    hostile = write_hostile(tmp_path)
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", str(hostile))
    before = dict(os.environ)
    with parallel_mapping(1) as parallel_map:
        found = list(parallel_map(where_it_is, ["random", "pipeline", "json"]))
    assert [Path(file).is_relative_to(hostile) for file, *_ in found] == [False] * 3
    assert {tuple(rest) for _, *rest in found} == {(str(hostile), None)}, "and theirs find what the user's would"
    assert dict(os.environ) == before
