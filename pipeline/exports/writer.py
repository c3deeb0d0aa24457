"""Where a format writes: objects of one side of one part of an export."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.datasets.samples import LabelledSample
from pipeline.storage.object_store import Store

OBJECT = "object"  # the category of what has none
THREADS = 16  # small objects on their way at once
WAITING = 64  # of them in memory


class Writing:
    """Small objects put side by side, so that their latencies overlap."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        self.store, self._pool = store, pool
        self._on_their_way: deque[Future[None]] = deque()

    def put(self, name: str, data: bytes) -> None:
        """An object as a whole; an equal one, which the same export has put, stays.

        Raises ConfigError where something else is there.
        """
        self._on_their_way.append(self._pool.submit(self.store.put_same, name, data))
        if len(self._on_their_way) > WAITING:
            self._on_their_way.popleft().result()

    def finish(self) -> None:
        """Wait until everything is there."""
        while self._on_their_way:
            self._on_their_way.popleft().result()


@contextmanager
def writing(store: Store) -> Iterator[Writing]:
    """Everything that was put is there when the block ends without an error."""
    with ThreadPoolExecutor(THREADS) as pool:
        puts = Writing(store, pool)
        yield puts
        puts.finish()


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """What a format needs to write one side of one part.

    side: `train` or `val`. number: of the part. alone: there is no other part. images: whether photos lie beside the
    labels. members: and everything else that a sample had. min_area: share of the image. ids: of annotations.
    categories: ids by name, the same in all parts.
    """

    side: str
    number: int
    alone: bool
    images: bool
    members: bool
    min_area: float
    ids: Iterator[int]
    categories: dict[str, int]
    puts: Writing

    @property
    def suffix(self) -> str:
        """What tells the names of parts apart; nothing where there is one."""
        return "" if self.alone else f"_{self.number:05}"

    def grow(self, name: str) -> AbstractContextManager[BinaryIO]:
        """An object that is written bit by bit."""
        return self.puts.store.growing(name)

    def put(self, name: str, data: bytes) -> None:
        """A small object."""
        self.puts.put(name, data)

    def put_photo(self, folder: str, sample: LabelledSample) -> None:
        """The photo as it was found, where photos are wanted."""
        if self.images and sample.photo is not None:
            self.put(f"{folder}/{sample.name}.{sample.extension}", sample.photo)

    def next_id(self) -> int:
        """For an annotation: unique in the whole export."""
        return next(self.ids)

    def category_id(self, category: str | None) -> int:
        """One category `object` for all that have none."""
        return self.categories[category or OBJECT]
