"""Listings by prefix of names: objects of a store or files of a disk, each with its size in bytes and its version."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

Names: TypeAlias = list[tuple[str, int, str]]  # relative to the root, bytes, and what changes when they do


def remote_names(filesystem: Any, version_of: Callable[[Mapping[str, Any]], str], root: str, prefix: str) -> Names:
    """Objects below a root of an fsspec file system."""
    folder, _, start = f"{root}/{prefix}".rpartition("/")
    try:
        found = filesystem.find(folder, detail=True, prefix=start)
    except FileNotFoundError:
        return []
    below = f"{root}/"
    names = ((path.removeprefix(below), info) for path, info in found.items() if path.startswith(below))
    return [(name, int(info["size"] or 0), version_of(info)) for name, info in names if name.startswith(prefix)]


def local_names(root: str, prefix: str) -> Names:
    """Files below a root of a disk. Only folders that can hold such names are entered: a run has many others."""
    found = []
    folders = [prefix.rpartition("/")[0]]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(f"{root}/{folder}"))
        except FileNotFoundError:
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                folders += [name] if name.startswith(prefix) else []
            elif name.startswith(prefix):
                with suppress(FileNotFoundError):  # a draft that was linked meanwhile
                    seen = entry.stat()
                    found.append((name, seen.st_size, str(seen.st_mtime_ns)))
    return found
