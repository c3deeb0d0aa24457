"""Keys as names of files: none that leads out of a folder, none twice, whichever file system they come to lie on.

A sample whose key cannot be a name, or not for it alone, has a made one: what is legible of the key, then the shard and
the index, which no other sample has.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from diffseg.types import Integer

MAX_PART = 200  # bytes of a folder or file name, so that what is added to it stays below the 255 of file systems
MAX_NAME = 700  # bytes of all of it: object stores take 1024, with the folder before it
_MADE = re.compile(
    r"-[0-9a-f]{12}_\d+(\.|/|$)", re.IGNORECASE
)  # how a made name ends: a key that looks so is given one itself
_PLAIN = re.compile(rf"(?:[\w-]{{1,{MAX_PART}}}/)*[\w-]{{1,{MAX_PART}}}", re.ASCII)  # most keys: seen at a glance
_ILLEGIBLE = re.compile(r"[^\w-]+")

Marks = Integer[np.ndarray, " N"]


class Names:
    """File names of samples, without extension: the key, or a made name."""

    def __init__(self, marks: Marks | None = None, folders: Marks | None = None) -> None:
        """marks: of the keys of all samples. folders: of the files that would stand where keys have their folders.

        Only what can be no name for one sample alone is kept.
        """
        found, counts = np.unique(np.empty(0, np.uint64) if marks is None else marks, return_counts=True)
        taken = counts > 1 if folders is None else (counts > 1) | np.isin(found, folders)
        self._taken = frozenset(found[taken].tolist())

    def of(self, key: str, shard: str, index: int) -> str:
        """The name of a sample's files."""
        mark = _mark(key)
        if mark is None:
            return made_name(key, shard, index)
        folder, slash, last = below(key).rpartition("/")
        return folder + slash + _with_place(last, shard, index) if mark in self._taken else below(key)


def made_name(key: str, shard: str, index: int) -> str:
    """A name below no folder that is one on every file system, and no other sample's."""
    legible = _ILLEGIBLE.sub("_", unicodedata.normalize("NFC", key)).strip("_")
    return _with_place(legible or "sample", shard, index)


def _with_place(text: str, shard: str, index: int) -> str:
    suffix = f"_{shard}_{index}"
    return text.encode()[: MAX_PART - len(suffix)].decode(errors="ignore") + suffix


def marks_of(keys: Iterable[str]) -> tuple[Marks, Marks]:
    """What `Names` must be told of these keys: their marks, and those of their folders."""
    marks, folders = list[int](), set[int]()
    for key in keys:
        if (mark := _mark(key)) is not None:
            marks.append(mark)
            folders.update(_folders(key) if "." in key else ())
    return np.array(marks, np.uint64), np.array(list(folders), np.uint64)


def _mark(key: str) -> int | None:
    """64 bits that tell names apart, the same for those that some file system takes for one; None for a key that can be
    no name.
    """
    if _MADE.search(key) or (key.startswith("__") and key.endswith("__")):
        return None
    if _PLAIN.fullmatch(key) and len(key) <= MAX_NAME:
        return _hash(key.lower())
    return _hash(_folded(below(key))) if is_file_name(key) and is_tar_name(key) else None


def _folders(key: str) -> Iterator[int]:
    """Marks of keys whose files may have the name of a folder of this one: `a` has `a.png`, where `a.png/b` lies."""
    folder = _folded(below(key)).rpartition("/")[0]
    while folder:
        above, slash, last = folder.rpartition("/")
        yield from (_hash(above + slash + last[:at]) for at, letter in enumerate(last) if letter == "." and at)
        folder = above


def is_file_name(key: str) -> bool:
    """Whether a key may name a file below a folder: relative, without `..`, and as every system keeps it."""
    name = below(key)
    parts = name.split("/")
    if any(part in ("", ".", "..") or part[-1] in ". " or len(part.encode()) > MAX_PART for part in parts):
        return False
    if "\\" in name or parts[0][1:2] == ":" or len(name.encode()) > MAX_NAME:
        return False
    return not any(ord(letter) < 32 or ord(letter) == 127 for letter in name)


def is_tar_name(key: str) -> bool:
    """Whether readers of WebDataset find a sample under its key again: it ends at the first dot of its last part."""
    last = key.rpartition("/")[2]
    return last != "" and not {".", "\0"} & set(last) and not (key.startswith("__") and key.endswith("__"))


def below(key: str) -> str:
    """A key from the folder it lies in: `tar -C photos .` names its members `./cat.jpg`."""
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key


def share(key: str) -> float:
    """A number in [0, 1) that the key alone decides, evenly spread."""
    return _hash(below(key)) / 2**64


def _folded(name: str) -> str:
    """The same for names that differ in case, or in how Unicode writes an accent."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
