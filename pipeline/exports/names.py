"""Keys as file names: none that leads out of the export, none twice."""

import hashlib
from collections.abc import Iterable

import numpy as np

from pipeline import table
from pipeline.ledger import Ledger
from pipeline.overlap import map_ahead
from pipeline.windows import WindowObject

THREADS = 16  # windows whose keys are read side by side: small reads are spent waiting
MAX_PART = 200  # bytes of a folder or file name, so that what is added to it stays below the 255 of file systems


class Names:
    """File names of samples, without extension: the key, and where a key repeats also the shard and the index.

    Holds eight bytes a sample while it is made and the repeated keys after that.
    """

    def __init__(self, ledger: Ledger, windows: Iterable[WindowObject]) -> None:
        def keys(window: WindowObject) -> np.ndarray:
            with ledger.store.reader(window.name, window.size) as stream:
                return np.array([_hash(row["key"]) for row in table.read_rows(stream, ["key"])], np.uint64)

        found = list(map_ahead(keys, windows, depth=THREADS, threads=THREADS))
        hashes, counts = np.unique(np.concatenate(found) if found else np.empty(0, np.uint64), return_counts=True)
        self._repeated = frozenset(hashes[counts > 1].tolist())

    def of(self, key: str, shard: str, index: int) -> str:
        """The name of a sample's files."""
        return f"{key}_{shard}_{index}" if _hash(key) in self._repeated else key


def is_file_name(key: str) -> bool:
    """Whether a key may name a file below a folder: relative, without `..`, NUL and other control characters."""
    parts = key.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > MAX_PART for part in parts):
        return False
    return parts[0][1:2] != ":" and not any(ord(letter) < 32 or ord(letter) == 127 for letter in key)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def share(key: str) -> float:
    """A number in [0, 1) that the key alone decides, evenly spread."""
    return _hash(key) / 2**64
