"""Cache of models: one copy on this machine for all its processes, and the origin recorded beside each copy."""

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

LOCK = ".lock"  # held while a copy is made; the system releases it when its process dies
PARTIAL = ".partial-"  # prefix of a copy that is not complete yet
ORIGIN = "fetched.json"  # beside the files of a copy


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a copy that `diffseg fetch` made. sha256: as in ModelFiles; files: bytes of each."""

    model: str
    revision: str | None
    sha256: str
    files: dict[str, int]

    def to_json(self) -> bytes:
        """The origin as it is stored beside the files."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "Origin":
        """Parse a stored origin. Raises ValueError for anything else."""
        try:
            return cls(**json.loads(data))  # by hand: only the engine has pydantic
        except (TypeError, ValueError) as error:
            raise ValueError(f"{ORIGIN} is no note of `diffseg fetch`: {error}") from error


def origin_of(folder: Path, sha256: str) -> Origin | None:
    """The origin of a folder, None where it is no copy.

    Raises ValueError where its bytes are not those that were copied.
    """
    if not (folder / ORIGIN).is_file():
        return None
    origin = Origin.from_json((folder / ORIGIN).read_bytes())
    if origin.sha256 != sha256:
        raise ValueError(
            f"{folder} is not the copy that {ORIGIN} tells of (sha256 {sha256[:12]}, it says {origin.sha256[:12]}): "
            f"remove it and fetch it again, or remove {ORIGIN} where it was changed on purpose"
        )
    return origin


def create_once(target: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder whole or not at all, by one process of this machine while the others wait for it.

    fill: writes the content into the folder it is given. Another machine on the same disk may finish first; its copy
    is then kept.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with suppress(OSError):  # some network disks have no locks: then two may download, and the first copy is kept
            held.enter_context(FileLock(target.parent / LOCK, fallback_to_soft=False))
        if target.is_dir():
            return
        mark = f"{PARTIAL}{target.name}-{platform.node()}-"
        for left in target.parent.glob(f"{mark}*"):  # by a process of this machine that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=mark, ignore_cleanup_errors=True) as partial:
            whole = Path(partial) / "model"
            whole.mkdir()
            fill(whole)
            try:
                whole.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
