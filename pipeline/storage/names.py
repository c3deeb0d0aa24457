"""File names from keys: unique, and never outside their folder, on every file system.

A sample whose key is no valid or no unique file name gets a generated one: the legible part of the key, then the shard
and the index, which no other sample has.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from diffseg.types import Integer

MAX_PART = 200  # bytes of a folder or file name, so that what is added to it stays below the 255 of file systems
MAX_NAME = 700  # bytes of all of it: object stores take 1024, with the folder before it
# The end of a generated name: a key of this form gets one too.
_GENERATED = re.compile(r"-[0-9a-f]{12}_\d+(\.|/|$)", re.IGNORECASE)
# Most keys: valid without further checks.
_PLAIN = re.compile(rf"(?:[\w-]{{1,{MAX_PART}}}/)*[\w-]{{1,{MAX_PART}}}", re.ASCII)
_ILLEGIBLE = re.compile(r"[^\w-]+")

Hashes = Integer[np.ndarray, " N"]


class Names:
    """File names of samples, without extension: the key, or a generated name."""

    def __init__(self, hashes: Hashes | None = None, folders: Hashes | None = None) -> None:
        """hashes: of the keys of all samples. folders: hashes of files that would have the path of a key's folder.

        Only hashes that are not unique are kept.
        """
        found, counts = np.unique(np.empty(0, np.uint64) if hashes is None else hashes, return_counts=True)
        taken = counts > 1 if folders is None else (counts > 1) | np.isin(found, folders)
        self._taken = frozenset(found[taken].tolist())

    def of(self, key: str, shard: str, index: int) -> str:
        """The name of a sample's files."""
        hash_ = _name_hash(key)
        if hash_ is None:
            return generated_name(key, shard, index)
        folder, slash, last = below(key).rpartition("/")
        return folder + slash + _with_identity(last, shard, index) if hash_ in self._taken else below(key)


def generated_name(key: str, shard: str, index: int) -> str:
    """A name without folders that is valid on every file system and belongs to no other sample."""
    legible = _ILLEGIBLE.sub("_", unicodedata.normalize("NFC", key)).strip("_")
    return _with_identity(legible or "sample", shard, index)


def _with_identity(text: str, shard: str, index: int) -> str:
    suffix = f"_{shard}_{index}"
    return text.encode()[: MAX_PART - len(suffix)].decode(errors="ignore") + suffix


def hashes_of(keys: Iterable[str]) -> tuple[Hashes, Hashes]:
    """The arguments of `Names` for these keys: their hashes, and those of their folders."""
    hashes, folders = list[int](), set[int]()
    for key in keys:
        if (hash_ := _name_hash(key)) is not None:
            hashes.append(hash_)
            folders.update(_folders(key) if "." in key else ())
    return np.array(hashes, np.uint64), np.array(list(folders), np.uint64)


def _name_hash(key: str) -> int | None:
    """A 64-bit hash of the file name, equal for names that some file system does not distinguish.

    None for a key that is no valid file name.
    """
    if _GENERATED.search(key) or (key.startswith("__") and key.endswith("__")):
        return None
    if _PLAIN.fullmatch(key) and len(key) <= MAX_NAME:
        return _hash(key.lower())
    return _hash(_folded(below(key))) if is_file_name(key) and is_tar_name(key) else None


def _folders(key: str) -> Iterator[int]:
    """Hashes of keys whose files may have the name of a folder of this one: `a` has `a.png`, where `a.png/b` lies."""
    folder = _folded(below(key)).rpartition("/")[0]
    while folder:
        above, slash, last = folder.rpartition("/")
        yield from (_hash(above + slash + last[:at]) for at, letter in enumerate(last) if letter == "." and at)
        folder = above


def is_file_name(key: str) -> bool:
    """Whether a key is a file name on every system: relative, without `..`, changed by none of them."""
    name = below(key)
    parts = name.split("/")
    if any(part in ("", ".", "..") or part[-1] in ". " or len(part.encode()) > MAX_PART for part in parts):
        return False
    if "\\" in name or parts[0][1:2] == ":" or len(name.encode()) > MAX_NAME:
        return False
    return not any(ord(letter) < 32 or ord(letter) == 127 for letter in name)


def is_tar_name(key: str) -> bool:
    """Whether readers of WebDataset restore the key: for them it ends at the first dot of its last part."""
    last = key.rpartition("/")[2]
    return last != "" and not {".", "\0"} & set(last) and not (key.startswith("__") and key.endswith("__"))


def below(key: str) -> str:
    """A key without a leading `./`, as in `./cat.jpg`, which `tar -C photos .` writes."""
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key


def unit_hash(key: str) -> float:
    """A hash of the key as a number in [0, 1), uniformly distributed."""
    return _hash(below(key)) / 2**64


def _folded(name: str) -> str:
    """Fold case and Unicode forms: names that differ only in these become equal."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
