"""Part writer: the objects of one side of one part of an export."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.datasets.samples import LabelledSample
from pipeline.datasets.selection import Selection
from pipeline.exports.categories import Categories
from pipeline.storage.names import Names
from pipeline.storage.object_store import Store

THREADS = 16  # concurrent writes of small objects
WAITING = 64  # small objects in memory


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that the parts of an export have in common; it is sent to the processes that write them.

    parts: how many there are. images: whether photos lie beside the labels. members: whether the other members of a
    sample do too. instances: their kind.
    """

    kind: str
    parts: int
    selection: Selection
    images: bool
    members: bool
    names: Names
    categories: Categories
    instances: str


@contextmanager
def writing(store: Store) -> Iterator[Callable[[str, bytes], None]]:
    """Yields a function that writes small objects, several at once; all are written when the block ends without error.

    An equal object, which an earlier attempt has written, is kept; ConfigError where something else is stored.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:

        def put(name: str, data: bytes) -> None:
            pending.append(pool.submit(store.put_same, name, data))
            if len(pending) > WAITING:
                pending.popleft().result()

        yield put
        for each in pending:
            each.result()


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """What a format needs to write one side of one part.

    side: `train` or `val`. number: of the part. ids: of annotations, unique in the whole export. notice: of the model
    and its licence, where the run knows it. put: writes a small object.
    """

    work: Work
    side: str
    number: int
    ids: Iterator[int]
    notice: dict[str, str]
    store: Store
    put: Callable[[str, bytes], None]

    @property
    def suffix(self) -> str:
        """The suffix of the part's names; empty where there is only one part."""
        return "" if self.work.parts == 1 else f"_{self.number:05}"

    def grow(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A large object that is written piece by piece."""
        return self.store.growing(name)

    def put_photo(self, folder: str, sample: LabelledSample) -> None:
        """Write the original photo, where photos are wanted."""
        if self.work.images and sample.photo is not None:
            self.put(f"{folder}/{sample.name}.{sample.extension}", sample.photo)
