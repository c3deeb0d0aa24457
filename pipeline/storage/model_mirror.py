"""A model copied to storage once, so that a cluster neither needs the hub nor hammers it.

The note of what is being copied comes first and is created once: it claims the folder. Files follow, each whole and
never overwritten, so that the same copy resumes and another one is refused. Readers check the bytes against the note.
"""

import shutil

from diffseg.models.cache import ORIGIN, Origin
from diffseg.models.files import ModelFiles, beside, listing_of, needed, reader_of
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.object_store import Store


def copy_model(files: ModelFiles, url: str) -> tuple[Origin, int]:
    """Copy a checkpoint of this machine into a folder on storage; what is there, and how many bytes were written.

    Raises ConfigError where the folder holds anything else, StorageError.
    """
    store = Store(url)
    there = dict(store.list(""))
    origin = _origin(files)
    if there and ORIGIN not in there:
        raise ConfigError(f"{store} holds other files and no {ORIGIN}; give an empty folder")
    if not there:
        store.put_new(ORIGIN, origin.to_json())
    _must_be(origin, Origin.from_json(store.get(ORIGIN)), str(store))
    written = 0
    for name, size in origin.files.items():
        if name in there:
            continue
        with (files.folder / name).open("rb") as source, store.growing(name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        written += size
    _check(store, origin)
    return origin, written


def _origin(files: ModelFiles) -> Origin:
    listing = listing_of(files.folder)
    names = [*needed(files.name, listing, reader_of(files.folder)), *beside(listing)]
    sizes = {name: (files.folder / name).stat().st_size for name in names}
    return Origin(files.name.partition("@")[0], files.revision, files.sha256, sizes)


def _must_be(wanted: Origin, there: Origin, where: str) -> None:
    if there.sha256 != wanted.sha256 or not there.files.items() <= wanted.files.items():  # older notes list less
        raise ConfigError(
            f"{where} holds {there.model} at {there.revision} (sha256 {there.sha256[:12]}...), not {wanted.model} at "
            f"{wanted.revision} (sha256 {wanted.sha256[:12]}...): give another folder"
        )


def _check(store: Store, origin: Origin) -> None:
    there = dict(store.list(""))
    for name, size in origin.files.items():
        if there.get(name) != size:
            raise StorageError(f"{store}/{name} has {there.get(name)} bytes after the copy, not {size}")
