"""Search: objects that match a pattern or lie below a folder, each with its version; on a disk through links.

Everything that is left out is reported.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.errors import ConfigError
from pipeline.records import legible
from pipeline.storage import filesystem
from pipeline.storage.filesystem import Entry
from pipeline.storage.retry import attempt, translate
from pipeline.storage.url import local_path, protocol_of, redact

MAX_PATHS = 1000  # to one folder, through links: folders that link to each other have infinitely many
SKIPPED, BROKEN, CIRCULAR, SPECIAL = OTHERS = ("hidden or system file", "broken link", "circular link", "special file")
Skip: TypeAlias = Callable[[str], bool]  # called with a name below the listed folder
_Identity: TypeAlias = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Found:
    """Objects in order of name, and the names of everything else, below the folder that was listed."""

    entries: list[Entry] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in OTHERS})  # not read, by kind

    def left_out(self) -> list[str]:
        """What is not read, by kind, with counts and examples."""
        return [counted(names, kind) for kind, names in self.others.items() if names]


def counted(names: Sequence[str], kind: str) -> str:
    """A count with the first name. kind: singular; an s is added for several."""
    several = len(names) > 1
    return f"{len(names):,} {kind}{'s, such as' if several else ':'} {legible(names[0])}"


def walk(folder: str, skip: Skip, *, links: bool = True) -> Found:
    """Every object below a folder; empty where there is no such folder. skip: names to leave out, with all below them.

    links: whether those of a disk are followed. Raises ConfigError, StorageError.
    """
    if links and protocol_of(folder) == "file":
        return _below(folder, None, skip, lambda name: True)
    try:
        return _sorted_out(folder, filesystem.listed(folder, lambda fs, path: fs.find(path, detail=True)), skip)
    except FileNotFoundError:
        return Found()


def expand_glob(folder: str, pattern: str, skip: Skip) -> Found:
    """Objects that match a pattern below a folder, in one listing.

    folder: taken literally, whatever characters it has. skip: names that no pattern matches.
    Raises ConfigError, StorageError.
    """
    whole = filesystem.glob_regex(pattern)
    if protocol_of(folder) != "file":
        asked = f"{escape(folder.rstrip('/'))}/{pattern}"
        return _sorted_out(f"{folder.rstrip('/')}/", filesystem.listed(asked, _glob), skip)
    parts = pattern.split("/")
    deep = parts.index("**") if "**" in parts else len(parts)
    beginnings = [filesystem.glob_regex("/".join(parts[: level + 1])) for level in range(deep)]

    def passed(name: str) -> bool:
        level = name.count("/")
        return skip(name) or (level < deep and not beginnings[level].match(name))

    depth = None if deep < len(parts) else len(parts)
    return _below(folder, depth, passed, lambda name: bool(whole.match(name)))


def glob_without_links(pattern: str) -> list[Entry]:
    """Objects that match a pattern by the rules of reader 1: on a disk, links are not followed."""
    return [entry for entry in filesystem.listed(pattern, _glob).values() if entry is not None]


def _glob(fs: Any, path: str) -> Any:
    return fs.glob(path, detail=True)


def _sorted_out(folder: str, listed: dict[str, Entry | None], skip: Skip) -> Found:
    named = redact(folder)  # as a listing names what it finds
    names = {url.removeprefix(named): entry for url, entry in listed.items()}
    found = Found()
    for name, entry in names.items():
        if skip(name):
            found.others[SKIPPED].append(name)
        elif entry is None:
            found.folders.append(name)
        else:
            found.entries.append(entry)
    return found


def _below(folder: str, depth: int | None, skip: Skip, wanted: Callable[[str], bool]) -> Found:
    """Objects below a folder of a disk. depth: levels of folders that are entered, with the first; None: all."""
    root = str(Path(local_path(folder)).absolute()).rstrip("/")
    found = _follow(root, depth, skip)
    others = {kind: sorted(filter(wanted, names)) for kind, names in found.others.items()}
    entries = [entry for entry in found.entries if wanted(entry.url.removeprefix(f"{root}/"))]
    entries.sort(key=lambda entry: entry.url)
    return Found(entries, sorted(filter(wanted, found.folders)), others)


def _follow(root: str, depth: int | None, skip: Skip) -> Found:
    """Everything below a folder of a disk, through links, a folder once for every path to it; in any order.

    Raises ConfigError where a folder cannot be listed, or too many paths lead to one.
    """
    found, entered = Found(), Counter[_Identity]()
    try:
        top = _identity(attempt(root, Path(root or "/").stat))
    except FileNotFoundError:
        return found
    waiting: list[tuple[str, tuple[_Identity, ...]]] = [("", (top,))]
    while waiting:
        folder, above = waiting.pop()
        for entry in _scan(f"{root}/{folder}"):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if skip(name):
                found.others[SKIPPED].append(name)
            elif (info := _look(entry, found, name)) is None:
                continue
            elif stat.S_ISREG(info.st_mode):
                found.entries.append(Entry(f"{root}/{name}", info.st_size, str(info.st_mtime)))
            elif not stat.S_ISDIR(info.st_mode):
                found.others[SPECIAL].append(name)
            elif (here := _identity(info)) in above:
                found.others[CIRCULAR].append(name)
            else:
                found.folders.append(name)
                entered[here] += 1
                if entered[here] > MAX_PATHS:
                    raise ConfigError(f"{root}/{name}: links lead to this folder in more than {MAX_PATHS} ways")
                if depth is None or name.count("/") + 2 <= depth:
                    waiting.append((name, (*above, here)))
    return found


def _look(entry: os.DirEntry[str], found: Found, name: str) -> os.stat_result | None:
    """The target of an entry; None for a link that leads nowhere."""
    try:
        return entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        found.others[BROKEN].append(name)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise translate(entry.path, error) from error
        found.others[CIRCULAR].append(name)
    return None


def _scan(path: str) -> list[os.DirEntry[str]]:
    """The entries of a folder; none where it was deleted meanwhile."""
    try:
        return attempt(path, lambda: list(os.scandir(path)))
    except FileNotFoundError:
        return []


def _identity(info: os.stat_result) -> _Identity:
    return info.st_dev, info.st_ino
