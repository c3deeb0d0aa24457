"""Mirror of a model: it is copied to storage once, so that the workers of a cluster do not download it from the hub.

The origin is written first and created only once: it claims the folder. Files follow, each whole and never overwritten,
so that a copy can be resumed and a copy of another model is refused. Readers compare the bytes with the origin.
"""

import shutil

from diffseg.models.cache import ORIGIN, Origin
from diffseg.models.files import ModelFiles, beside, listing_of, needed, reader_of
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.object_store import Store


def copy_model(files: ModelFiles, url: str) -> tuple[Origin, int]:
    """Copy a checkpoint of this machine into a folder on storage; returns its origin and the number of bytes written.

    Raises ConfigError where the folder holds anything else, StorageError.
    """
    store, listing = Store(url), listing_of(files.folder)
    names = [*needed(files.name, listing, reader_of(files.folder)), *beside(listing)]
    sizes = {name: (files.folder / name).stat().st_size for name in names}
    origin = Origin(files.name.partition("@")[0], files.revision, files.sha256, sizes)
    existing = dict(store.list(""))
    if existing and ORIGIN not in existing:
        raise ConfigError(f"{store} holds other files and no {ORIGIN}; give an empty folder")
    if not existing:
        store.put_new(ORIGIN, origin.to_json())
    found = Origin.from_json(store.get(ORIGIN))
    if found.sha256 != origin.sha256 or not found.files.items() <= sizes.items():  # older notes list less
        raise ConfigError(
            f"{store} holds {found.model} at {found.revision} (sha256 {found.sha256[:12]}...), not {origin.model} at "
            f"{origin.revision} (sha256 {origin.sha256[:12]}...): give another folder"
        )
    missing = sizes.keys() - existing.keys()
    for name in sorted(missing):
        with (files.folder / name).open("rb") as source, store.growing(name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    stored = dict(store.list(""))
    for name, size in sizes.items():
        if stored.get(name) != size:
            raise StorageError(f"{store}/{name} has {stored.get(name)} bytes after the copy, not {size}")
    return origin, sum(sizes[name] for name in missing)
