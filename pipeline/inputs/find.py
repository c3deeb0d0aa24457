"""What matches a pattern and what lies below a folder, each with its version; on a disk through links.

What is not taken is named, so that nothing is lost without a word.
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

MOST_NAMES = 1000  # of one folder, through links: folders that link to each other have numberless
Skip: TypeAlias = Callable[[str], bool]  # told a name below the folder that is listed
_Identity: TypeAlias = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Found:
    """Objects in order of name, and the names of what else is there, below the folder that was listed."""

    entries: list[Entry] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # links to what is not there
    circular: list[str] = field(default_factory=list)  # links to a folder that they lie in
    strange: list[str] = field(default_factory=list)  # pipes, sockets, devices

    def left_out(self) -> list[str]:
        """What of it nobody reads, by kind, counted and named."""
        kinds = (
            (self.skipped, "hidden or system file"),
            (self.broken, "broken link"),
            (self.circular, "circular link"),
            (self.strange, "special file"),
        )
        return [counted(names, kind) for names, kind in kinds if names]


def counted(names: Sequence[str], kind: str) -> str:
    """How many, and the first of them by name. kind: of one; that of several ends in an s."""
    several = len(names) > 1
    return f"{len(names):,} {kind}{'s, such as' if several else ':'} {legible(names[0])}"


def walk(folder: str, skip: Skip, *, links: bool = True) -> Found:
    """Every object below a folder; nothing where there is none. skip: names that are passed over, with all below them.

    links: whether those of a disk are followed. Raises ConfigError, StorageError.
    """
    if links and protocol_of(folder) == "file":
        return _below(folder, None, skip, lambda name: True)
    try:
        return _sorted_out(folder, filesystem.listed(folder, lambda fs, path: fs.find(path, detail=True)), skip)
    except FileNotFoundError:
        return Found()


def expand_glob(folder: str, pattern: str, skip: Skip) -> Found:
    """What a pattern matches below a folder; one listing, however many they are.

    folder: as it is named, whatever letters that takes. skip: names that no pattern matches.
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
    """What a pattern matched for reader 1: on a disk neither links nor what lies behind them."""
    return [entry for entry in filesystem.listed(pattern, _glob).values() if entry is not None]


def _glob(fs: Any, path: str) -> Any:
    return fs.glob(path, detail=True)


def _sorted_out(folder: str, listed: dict[str, Entry | None], skip: Skip) -> Found:
    named = redact(folder)  # as a listing names what it finds
    names = {url.removeprefix(named): entry for url, entry in listed.items()}
    skipped = [name for name in names if skip(name)]
    for name in skipped:
        del names[name]
    entries = [entry for entry in names.values() if entry is not None]
    return Found(entries, [name for name, entry in names.items() if entry is None], skipped)


def _below(folder: str, depth: int | None, skip: Skip, wanted: Callable[[str], bool]) -> Found:
    """The same on a disk. depth: folders below each other that are entered, with the first; None: all."""
    root = str(Path(local_path(folder)).absolute()).rstrip("/")
    found = _follow(root, depth, skip)
    others = (found.folders, found.skipped, found.broken, found.circular, found.strange)
    entries = [entry for entry in found.entries if wanted(entry.url.removeprefix(f"{root}/"))]
    entries.sort(key=lambda entry: entry.url)
    return Found(entries, *(sorted(filter(wanted, names)) for names in others))


def _follow(root: str, depth: int | None, skip: Skip) -> Found:
    """Everything below a folder of a disk, through links, a folder by as many names as lead to it; in any order.

    Raises ConfigError where a folder cannot be listed, or links lead to one over and over.
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
                found.skipped.append(name)
            elif (info := _look(entry, found, name)) is None:
                continue
            elif stat.S_ISREG(info.st_mode):
                found.entries.append(Entry(f"{root}/{name}", info.st_size, str(info.st_mtime)))
            elif not stat.S_ISDIR(info.st_mode):
                found.strange.append(name)
            elif (here := _identity(info)) in above:
                found.circular.append(name)
            else:
                found.folders.append(name)
                entered[here] += 1
                if entered[here] > MOST_NAMES:
                    raise ConfigError(f"{root}/{name}: links lead to this folder in more than {MOST_NAMES} ways")
                if depth is None or name.count("/") + 2 <= depth:
                    waiting.append((name, (*above, here)))
    return found


def _look(entry: os.DirEntry[str], found: Found, name: str) -> os.stat_result | None:
    """What a name leads to; None for a link that leads nowhere."""
    try:
        return entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        found.broken.append(name)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise translate(entry.path, error) from error
        found.circular.append(name)
    return None


def _scan(path: str) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is gone meanwhile."""
    try:
        return attempt(path, lambda: list(os.scandir(path)))
    except FileNotFoundError:
        return []


def _identity(info: os.stat_result) -> _Identity:
    return info.st_dev, info.st_ino
