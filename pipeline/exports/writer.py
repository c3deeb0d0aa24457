"""Part writer: the objects of one side of one part of an export."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import Categories
from pipeline.storage.object_store import Store

THREADS = 16  # concurrent writes of small objects
WAITING = 64  # small objects in memory


class Writing:
    """Writes small objects concurrently, so that their latencies overlap."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        self.store, self._pool = store, pool
        self._pending: deque[Future[None]] = deque()

    def put(self, name: str, data: bytes) -> None:
        """Write a whole object; an equal one, which an earlier attempt has written, is kept.

        Raises ConfigError where something else is stored.
        """
        self._pending.append(self._pool.submit(self.store.put_same, name, data))
        if len(self._pending) > WAITING:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until everything is written."""
        while self._pending:
            self._pending.popleft().result()


@contextmanager
def writing(store: Store) -> Iterator[Writing]:
    """All objects are written when the block ends without an error."""
    with ThreadPoolExecutor(THREADS) as pool:
        puts = Writing(store, pool)
        yield puts
        puts.finish()


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """Everything a format needs to write one side of one part.

    side: `train` or `val`. number: of the part. alone: there is no other part. images: whether photos lie beside the
    labels. members: whether the other members of a sample do too. min_area: share of the image. ids: of annotations.
    notice: of the model and its licence, where the run knows it.
    """

    side: str
    number: int
    alone: bool
    images: bool
    members: bool
    min_area: float
    ids: Iterator[int]
    categories: Categories
    notice: dict[str, str]
    puts: Writing

    @property
    def suffix(self) -> str:
        """The suffix of the part's names; empty where there is only one part."""
        return "" if self.alone else f"_{self.number:05}"

    def grow(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A large object that is written piece by piece."""
        return self.puts.store.growing(name)

    def put(self, name: str, data: bytes) -> None:
        """Write a small object."""
        self.puts.put(name, data)

    def put_photo(self, folder: str, sample: LabelledSample) -> None:
        """Write the original photo, where photos are wanted."""
        if self.images and sample.photo is not None:
            self.put(f"{folder}/{sample.name}.{sample.extension}", sample.photo)

    def next_id(self) -> int:
        """An id for an annotation, unique in the whole export."""
        return next(self.ids)
