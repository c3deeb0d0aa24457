"""Ranged reads: an object as a seekable stream, read in ranges that are retried one by one."""

import io
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.retry import attempt
from pipeline.watch import beat

CHUNK = 8 << 20  # bytes of a sequential request: half the requests of 4 MiB, and still small beside a model
FIRST_CHUNK = 64 << 10  # bytes of the first request after a seek: mostly only a header is wanted
GAP = 1 << 20  # bytes: reading a smaller gap is faster than another request


class RangedReader(io.RawIOBase):
    """An object as a seekable stream: every request is retried on its own, so a broken connection costs one chunk.

    Reads grow from FIRST_CHUNK to CHUNK while they go forward in small steps. size: bytes as pinned; reading beyond is
    the end. Raises StorageError where the store gives fewer bytes than it announced.
    """

    def __init__(self, fs: Any, path: str, what: str, size: int, gap: int = GAP) -> None:
        self._fs, self._path, self._what, self._size, self._gap = fs, path, what, size, gap
        self._at, self._start, self._data, self._next = 0, 0, b"", FIRST_CHUNK
        self.fetched = 0  # bytes

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek; nothing is fetched until the next read."""
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"cannot seek to byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current chunk."""
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._data):
            self._fetch()
        offset = self._at - self._start
        taken = self._data[offset : offset + len(buffer)]
        buffer[: len(taken)] = taken
        self._at += len(taken)
        return len(taken)

    def _fetch(self) -> None:
        ahead = self._at - (self._start + len(self._data))
        self._next = min(self._next * 4, CHUNK) if self._data and 0 <= ahead <= self._gap else FIRST_CHUNK
        self._data, self._start = self._get(self._at, min(self._at + self._next, self._size)), self._at
        self.fetched += len(self._data)
        beat.get()()

    def _get(self, start: int, end: int) -> bytes:
        def request() -> bytes:
            data: bytes = self._fs.cat_file(self._path, start=start, end=end)
            if len(data) == self._size:  # a server that knows no ranges
                data = data[start:end]
            if len(data) != end - start:
                raise ConnectionError(f"{len(data)} of {end - start} bytes came from offset {start}")
            return data

        try:
            return attempt(self._what, request)
        except FileNotFoundError as error:
            raise StorageError(f"{self._what}: gone while it was read") from error
