"""What makes a Ray private: a folder that only its user can enter, an environment in which it listens to nobody else.

Ray opens its own folders to everybody (0777), again with every worker that starts: the one around them stays closed. It
listens on every network interface, unless it takes the machine for one that no others may join.
"""

import fcntl
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError

RAYS = "r"  # the folder that Ray makes in our folder
_SOCKET = (
    f"/diffseg-12345678/{RAYS}/session_2026-01-31_23-59-59_999999_1234567/sockets/plasma_store"  # the longest path
)
MOST = (107 if sys.platform == "linux" else 103) - len(_SOCKET)  # bytes of a path for our folder: what systems allow
HELD = "held"  # a file in the folder, locked as long as its driver lives
FREE = 50_000_000  # bytes: logs, mostly
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]*")  # Ray joins paths to command lines and splits them at blanks


def make_folder() -> str:
    """Make a folder for a private Ray: among temporary files or, where Ray cannot use that place, somewhere else.

    Raises ConfigError where Ray can use no place.
    """
    asked, usual = os.environ.get("TMPDIR", ""), ""
    with suppress(FileNotFoundError):
        usual = tempfile.gettempdir()
    candidates = (usual, "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm")
    for path in dict.fromkeys(path for path in candidates if path):
        try:
            fits = len(os.fsencode(path)) <= MOST and _PLAIN.fullmatch(path)
            if fits and shutil.disk_usage(path).free >= FREE:
                _sweep(Path(path))
                return _held(tempfile.mkdtemp(prefix="diffseg-", dir=path))
        except OSError:
            continue  # it does not exist, or this user may not write to it
    raise ConfigError(
        f"Ray finds no place for its files (TMPDIR={asked}): set TMPDIR to a folder with {FREE // 1_000_000} MB free "
        f"whose path has at most {MOST} plain characters, or do without Ray (label --workers 0)"
    )


def _held(folder: str) -> str:
    """A folder that is seen to be held as long as this process lives: its end alone closes the descriptor."""
    fcntl.flock(os.open(f"{folder}/lock", os.O_CREAT | os.O_WRONLY, 0o600), fcntl.LOCK_EX)
    Path(folder, "lock").rename(Path(folder, HELD))  # seen only once it is locked
    return folder


def _sweep(place: Path) -> None:
    """Delete folders of drivers that were killed, and whatever would have cleaned up after them too."""
    for held in place.glob(f"diffseg-????????/{HELD}"):
        with suppress(OSError), held.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)


@contextmanager
def passing_folder() -> Iterator[str]:
    """A folder for a private Ray, deleted after the block. Raises ConfigError, see `make_folder`."""
    folder = make_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Environment variables that a private Ray is started with."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever the system is: all of its processes listen on loopback
        "RAY_AUTH_MODE": "token",  # other users of this machine can connect to loopback
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
