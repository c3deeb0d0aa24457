"""Object store: a folder whose objects are created whole or not at all, and only once.

A remote object is created with the store's own condition (S3 `If-None-Match: *`, GCS `ifGenerationMatch=0`, Azure's
create); a local one is written to a temporary file, synced to the disk, and linked to its name.
"""

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EISDIR, ENOTDIR
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline import documents
from pipeline.errors import ConfigError
from pipeline.storage.clients import lists_by_prefix
from pipeline.storage.filesystem import filesystem, ranged, version_of
from pipeline.storage.listing import local_names, remote_names
from pipeline.storage.ranged_reader import GAP
from pipeline.storage.retry import attempt, translate
from pipeline.storage.url import canonical, protocol_of, redact

TMP = "tmp"  # drafts of local objects, on the same disk as what they are linked to
BLOCK = 1 << 20  # bytes compared at a time
NOTE, LARGE_NOTE = 1 << 20, 1 << 28  # bytes of a note that is read; of one that names every window of a large run
ABANDONED_S = 86_400  # seconds untouched after which a draft is abandoned: a commit is tried for minutes

T = TypeVar("T")


class Store:
    """A folder of objects that are created once and never changed: the state of a run.

    url: where, canonical. Names are relative to it, with `/`. create_only: False where the store is known to ignore the
    condition, see `probe`.
    """

    def __init__(self, url: str, *, create_only: bool = True) -> None:
        self.url = canonical(url)
        self.local = protocol_of(url) == "file"
        self._fs, root = filesystem(self.url if self.local else url)
        self._root = root.rstrip("/")
        self.writable = protocol_of(url) not in ("http", "https")
        self.lists_by_prefix = lists_by_prefix(self._fs)  # otherwise a part of a listing takes as long as all of it
        self.create_only = create_only

    def __str__(self) -> str:
        return self._root if self.local else redact(self.url)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object in one step; False where it exists already.

        Whole or not at all: readers never see a part, and a late twin of a dead worker cannot overwrite. False may also
        mean that an earlier try of this very call was stored and its reply lost: compare the content.
        Raises ConfigError where the place cannot be written to, StorageFull, StorageError.
        """
        if not self.writable:
            raise self._nowhere(name)
        if not self.create_only:
            return not self.exists(name) and self.replace(name, data)
        create = self._link_new if self.local else self._create
        try:
            attempt(f"{self}/{name}", lambda: create(name, data))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise self._nowhere(name) from error
        return True

    def probe(self, name: str, data: bytes) -> None:
        """Put an object that exists once more. Where it is taken, this store ignores the condition, and is used so."""
        if self.put_new(name, data):
            self.create_only = False

    def put_same(self, name: str, data: bytes) -> None:
        """Create an object, or find it with the same content. Raises as `put_new`, ConfigError where it has another."""
        if not self.put_new(name, data):
            self._compare(name, io.BytesIO(data), len(data))

    def _compare(self, name: str, content: BinaryIO, size: int) -> None:
        same = self.size(name) == size
        if same:
            with self.reader(name, size) as existing:
                same = all(existing.read(len(block)) == block for block in iter(lambda: content.read(BLOCK), b""))
        if not same:
            raise ConfigError(f"{self}/{name}: something else is here already: use another --output")

    def _nowhere(self, name: str) -> ConfigError:
        if not self.writable:
            return ConfigError(f"{self}: a web server can be read from, not written to")
        missing = "cannot be made a folder" if self.local else "no such bucket or container"
        return ConfigError(f"{self}: {missing}, wanted for {name}")

    def _create(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(name), data, mode="create")

    def _link_new(self, name: str, data: bytes) -> None:
        """Create a local file under its name only when its bytes are on the disk."""
        with self._draft(data) as draft:
            self._link(Path(draft.name), name)

    def _link(self, draft: Path, name: str) -> None:
        target = Path(self._path(name))
        _make_folder(target.parent)
        try:
            os.link(draft, target)
        except FileExistsError:
            if target.is_dir():
                raise IsADirectoryError(EISDIR, "a folder stands where this object belongs") from None
            if draft.stat().st_nlink != 2:  # two: the link was made, only its reply was lost (network file systems)
                raise
        _sync(target.parent)

    @contextmanager
    def growing(self, name: str) -> Iterator[BinaryIO]:
        """Write an object larger than memory: it exists, whole, once the block has written it without an error.

        An equal object that exists already is kept. Raises as `put_same` does.
        """
        what = f"{self}/{name}"
        with ExitStack() as stack:
            new = self._draft if self.local else tempfile.NamedTemporaryFile
            draft: Any = attempt(what, lambda: stack.enter_context(new()))
            try:
                yield draft
                draft.flush()
                os.fsync(draft.fileno())
            except OSError as error:
                raise translate(what if self.local else f"{draft.name}, the draft of {what}", error) from error
            path = Path(draft.name)
            put = self._link if self.local else self._upload
            try:
                attempt(what, lambda: put(path, name))
            except FileExistsError:
                draft.seek(0)
                self._compare(name, draft, path.stat().st_size)
            except FileNotFoundError as error:
                raise self._nowhere(name) from error

    @contextmanager
    def _draft(self, data: bytes = b"") -> Iterator[BinaryIO]:
        """A file with these bytes on the disk, deleted after the block; unlike temporary files, others may read it."""
        path = Path(self._path(TMP), uuid.uuid4().hex)
        _make_folder(path.parent)
        try:
            with path.open("x+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                yield file
        finally:
            path.unlink(missing_ok=True)

    def _upload(self, draft: Path, name: str) -> None:
        if self._fs.exists(self._path(name)):
            raise FileExistsError(name)
        self._fs.put_file(str(draft), self._path(name))  # object stores show nothing before the last byte is there

    def sweep(self) -> int:
        """Delete the drafts that killed processes left on a local disk; how many.

        Age is measured by the clock of that file system, which is enough: a draft is no commit. A process that was
        suspended for a day finds its draft gone, fails, and commits the window when it is tried again.
        """
        return attempt(f"{self}/{TMP}", self._sweep) if self.local and Path(self._path(TMP)).is_dir() else 0

    def _sweep(self) -> int:
        swept, folder = 0, Path(self._path(TMP))
        with tempfile.NamedTemporaryFile(dir=folder) as fresh:
            now = Path(fresh.name).stat().st_mtime
        for draft in folder.iterdir():
            with suppress(FileNotFoundError):  # linked or swept by another meanwhile
                if now - draft.stat().st_mtime > ABANDONED_S:
                    draft.unlink()
                    swept += 1
        return swept

    def replace(self, name: str, data: bytes) -> bool:
        """Write or overwrite a whole object on which no correctness depends; always True."""

        def write() -> None:
            if not self.local:
                self._fs.pipe_file(self._path(name), data)
                return
            target = Path(self._path(name))
            _make_folder(target.parent)
            with self._draft(data) as draft:
                Path(draft.name).replace(target)

        try:
            attempt(f"{self}/{name}", write)
        except FileNotFoundError as error:
            raise self._nowhere(name) from error
        return True

    def remove(self, name: str) -> None:
        """Delete an object; it may be gone already. Nothing else in the project deletes what a run holds.

        Called by `compact` for its own outdated files, by `repair.set_aside` and by `withdraw --purge`, which operators
        run with rights of their own: no driver and no worker may. Raises ConfigError where the store refuses.
        """
        with suppress(FileNotFoundError):
            attempt(f"{self}/{name}", lambda: self._fs.rm_file(self._path(name)))

    def free_space(self) -> int | None:
        """Bytes left on a local disk; None where that is unknown."""
        if not self.local:
            return None
        existing = next((folder for folder in (Path(self._root), *Path(self._root).parents) if folder.exists()), None)
        usage = shutil.disk_usage(existing) if existing else None
        return usage.free if usage and usage.total else None  # what has no size, such as /proc, is no disk

    def exists(self, name: str) -> bool:
        """Whether the object exists."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where it does not exist."""
        try:
            info = attempt(f"{self}/{name}", lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        return None if info.get("type") == "directory" else int(info["size"])

    def get(self, name: str, most: int = LARGE_NOTE) -> bytes:
        """A whole object. most: bytes. Raises FileNotFoundError, ValueError where it is larger."""
        if (size := self.size(name)) is not None and size > most:
            raise ValueError(f"{size:,} bytes, more than {most:,}")
        with self.reader(name, size) as stream:
            return stream.read()

    def document(self, kind: type[T], name: str, most: int = NOTE) -> T:
        """A note of a run, a small JSON document, as a dataclass or a list of them. most: bytes.

        Raises FileNotFoundError, ValueError in one line where it is cut, foreign, deep or larger.
        """
        return documents.from_json(kind, self.get(name, most))

    def reader(self, name: str, size: int | None = None) -> BinaryIO:
        """An object as a stream of ranged reads. size: where it is known from a listing.

        Raises FileNotFoundError.
        """
        known = self.size(name) if size is None else size
        if known is None:
            raise FileNotFoundError(f"{self}/{name}")
        return ranged(self._fs, self._path(name), f"{self}/{name}", known, gap=0 if self.local else GAP)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below this folder that begin with `prefix`, and their bytes, in order of name."""
        return ((name, size) for name, size, _ in self.versions(prefix))

    def versions(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """As `list`, with what changes whenever an object does: the store's version, or the time of a file."""
        look = local_names if self.local else partial(remote_names, self._fs, version_of)
        yield from sorted(attempt(f"{self}/{prefix}*", lambda: look(self._root, prefix)))


def _make_folder(folder: Path) -> None:
    """Make it where it is missing. Raises NotADirectoryError: that a file stands there is not that an object exists."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(ENOTDIR, f"{folder} is a file, where a folder belongs") from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
