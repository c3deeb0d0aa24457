"""Where Python looks for modules: in the interpreter's own folders and in this project's before any of the user's.

A user may have a `jobs.py`, a `ray.py` or a `random.py` where a command is run or on PYTHONPATH, and Python would take
those for ours, for a dependency's and for its own. What this file imports is loaded in every interpreter. It cannot
protect from PYTHONPATH what is imported before it: `re`, with `types` and `enum`, by pip's script for a command, and
`pathlib` by the .pth file of a development install.
"""

import os
import site
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of our packages
_BEFORE = "DIFFSEG_BEFORE_"  # in front of a variable's name: what it was before `child_environment` changed it
_FOLDER, _UMASK = "DIFFSEG_FOLDER", "DIFFSEG_UMASK"


def own_first() -> list[str]:
    """sys.path without the folder of the running script or command, and what PYTHONPATH names at its end."""
    asked = [os.path.abspath(folder) for folder in _asked().split(os.pathsep)] if _asked() else []
    found = sys.path[1:] if _is_the_users(sys.path[0]) else sys.path
    return list(dict.fromkeys([*(folder for folder in found if folder not in asked), ROOT, *asked]))


def child_environment(*, moved: bool = False) -> dict[str, str]:
    """Variables with which another Python finds modules in this order, until it restores the user's own by `settle`.

    moved: it begins in another folder and with another umask; `settle` brings these back too.
    """
    wanted = {"PYTHONSAFEPATH": "1"}  # no module is looked for where it begins
    if _asked() or ROOT not in (*site.getsitepackages(), site.getusersitepackages()):
        wanted["PYTHONPATH"] = os.pathsep.join(own_first())
    kept = {_BEFORE + name: os.environ.get(name, "") for name in wanted}
    return wanted | kept | ({_FOLDER: _here(), _UMASK: f"{_umask():o}"} if moved else {})


def settle() -> None:
    """In a process that was begun with `child_environment`: give it, and those it begins, what the user's have."""
    for name in [name for name in os.environ if name.startswith(_BEFORE)]:
        before = os.environ.pop(name)
        os.environ[name.removeprefix(_BEFORE)] = before
        if not before:
            del os.environ[name.removeprefix(_BEFORE)]
    if mask := os.environ.pop(_UMASK, ""):
        os.umask(int(mask, 8))
    folder = os.environ.pop(_FOLDER, "")
    if os.path.isdir(folder):
        os.chdir(folder)


def _asked() -> str:
    return "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")


def _is_the_users(first: str) -> bool:
    """Whether Python put it there for the script, the module or the command that it was told to run."""
    here = _here()
    script = os.path.realpath(os.path.join(here, sys.argv[0])) if sys.argv and here else ""
    return first in ("", here, os.path.dirname(script))


def _here() -> str:
    """The folder this process is in; empty where it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
