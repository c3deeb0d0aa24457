"""Keys as file names: none that leads out of the export, none twice."""

import hashlib

import numpy as np

from diffseg.types import Integer

MAX_PART = 200  # bytes of a folder or file name, so that what is added to it stays below the 255 of file systems


class Names:
    """File names of samples, without extension: the key, and where a key repeats also the shard and the index."""

    def __init__(self, hashes: Integer[np.ndarray, " N"]) -> None:
        """hashes: of the keys of all samples; only those that repeat are kept."""
        found, counts = np.unique(hashes, return_counts=True)
        self._repeated = frozenset(found[counts > 1].tolist())

    def of(self, key: str, shard: str, index: int) -> str:
        """The name of a sample's files."""
        name = below(key)
        return f"{name}_{shard}_{index}" if hash_of(key) in self._repeated else name


def below(key: str) -> str:
    """A key from the folder it lies in: `tar -C photos .` names its members `./cat.jpg`."""
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key


def is_file_name(key: str) -> bool:
    """Whether a key may name a file below a folder: relative, without `..`, NUL and other control characters."""
    parts = below(key).replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > MAX_PART for part in parts):
        return False
    return parts[0][1:2] != ":" and not any(ord(letter) < 32 or ord(letter) == 127 for letter in key)


def hash_of(key: str) -> int:
    """64 bits that tell keys apart, as far as their names below a folder differ."""
    return int.from_bytes(hashlib.blake2b(below(key).encode(), digest_size=8).digest(), "big")


def share(key: str) -> float:
    """A number in [0, 1) that the key alone decides, evenly spread."""
    return hash_of(key) / 2**64
