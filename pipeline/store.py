"""The folder a run lives in: objects appear whole or not at all, and only once.

A remote object is created with the store's own condition (S3 `If-None-Match: *`, GCS `ifGenerationMatch=0`, Azure's
create); a local one is written aside, brought to the disk, and linked to its name.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigError
from pipeline.storage import attempt, canonical, filesystem, protocol_of, ranged, redact


class Store:
    """A folder of objects that are created once and never changed: the state of a run.

    url: where, canonical. Names are relative to it, with `/`.
    """

    def __init__(self, url: str) -> None:
        self.url = canonical(url)
        self.local = protocol_of(url) == "file"
        self._fs, root = filesystem(self.url if self.local else url)
        self._root = root.rstrip("/")
        self.create_only = True  # see Ledger.probe; False where the store ignores the condition

    def __str__(self) -> str:
        return self._root if self.local else redact(self.url)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object in one step; False where it exists already.

        Whole or not at all: readers never see a part, and a late twin of a dead worker cannot overwrite. False may also
        mean that an earlier try of this very call was stored and its reply lost: compare the content.
        """
        if not self.create_only:
            return not self.exists(name) and self.replace(name, data)
        create = self._link_new if self.local else self._create
        try:
            attempt(f"{self}/{name}", lambda: create(name, data))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise ConfigError(f"{self}: cannot be written: no such folder or bucket") from error
        return True

    def _create(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(name), data, mode="create")

    def _link_new(self, name: str, data: bytes) -> None:
        """A local file appears under its name only when its bytes are on the disk."""
        target = Path(self._path(name))
        draft = self._draft(data)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(draft, target)
            except FileExistsError:
                if draft.stat().st_nlink != 2:  # two: the link was made, only its reply was lost (network file systems)
                    raise
            _sync(target.parent)
        finally:
            draft.unlink()

    def _draft(self, data: bytes) -> Path:
        folder = Path(self._path("tmp"))
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / uuid.uuid4().hex
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft

    def replace(self, name: str, data: bytes) -> bool:
        """Write an object that nobody's correctness rests on, whole; always True."""

        def write() -> None:
            if not self.local:
                self._fs.pipe_file(self._path(name), data)
                return
            target = Path(self._path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self._draft(data).replace(target)

        attempt(f"{self}/{name}", write)
        return True

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        return bool(attempt(f"{self}/{name}", lambda: self._fs.exists(self._path(name))))

    def get(self, name: str) -> bytes:
        """A whole object. Raises FileNotFoundError."""
        data: bytes = attempt(f"{self}/{name}", lambda: self._fs.cat_file(self._path(name)))
        return data

    def reader(self, name: str, size: int | None = None) -> BinaryIO:
        """An object as a stream of ranges. size: where a listing told it already."""
        what, path = f"{self}/{name}", self._path(name)
        known = int(attempt(what, lambda: self._fs.size(path))) if size is None else size
        return ranged(self._fs, path, what, known)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below this folder that begin with `prefix`, and their bytes, in order of name."""
        folder = self._path(prefix).rpartition("/")[0]
        narrowed = {} if self.local else {"prefix": prefix.rpartition("/")[2]}
        try:
            found = attempt(f"{self}/{prefix}*", lambda: self._fs.find(folder, detail=True, **narrowed))
        except FileNotFoundError:
            return
        for path, info in sorted(found.items()):
            name = str(path)[len(self._root) + 1 :] if str(path).startswith(self._root) else str(path)
            if name.startswith(prefix):
                yield name, int(info["size"] or 0)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
