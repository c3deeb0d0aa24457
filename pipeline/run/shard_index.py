"""The shards of a run, in little memory: a driver holds all of them, and there may be millions."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from pipeline.records import READER, Shard

_SEPARATOR = "\0"


class ShardIndex(Mapping[str, Shard]):
    """Shards by id, in the order they were pinned, as one block of text: about a hundred bytes a shard.

    Each access builds the shard again: by id, with a binary search, or by its position.
    """

    def __init__(self, shards: Iterable[Shard] = (), reader: int = READER) -> None:
        """reader: of the run; replaces that of each shard."""
        self._reader = reader
        text, self._ends, self._sizes, ids = bytearray(), array("Q", [0]), array("Q"), []
        self._files: dict[int, str | bytes] = {}  # by position; few shards are folders
        for position, shard in enumerate(shards):
            source = "" if shard.source == shard.url else shard.source
            text += _SEPARATOR.join((shard.id, shard.url, shard.etag, source)).encode()
            self._ends.append(len(text))
            self._sizes.append(shard.size)
            ids.append(shard.id)
            if shard.files:
                self._files[position] = shard.files
        self._text = bytes(text)
        self._by_id = array("L", sorted(range(len(ids)), key=ids.__getitem__))

    def at(self, position: int) -> Shard:
        """The shard at a position, counted from 0 in the order they were pinned."""
        id_, url, etag, source = self._text[self._ends[position] : self._ends[position + 1]].decode().split(_SEPARATOR)
        return Shard(id_, url, self._sizes[position], etag, source or url, self._files.get(position, ""), self._reader)

    def position(self, id_: str) -> int:
        """The position of a shard. Raises KeyError for an unknown id."""
        found = bisect_left(self._by_id, id_, key=self._id)
        if found == len(self._by_id) or self._id(self._by_id[found]) != id_:
            raise KeyError(id_)
        return self._by_id[found]

    def _id(self, position: int) -> str:
        first = self._ends[position]
        return self._text[first : self._text.index(0, first)].decode()

    def __getitem__(self, id_: str) -> Shard:
        return self.at(self.position(id_))

    def __iter__(self) -> Iterator[str]:
        for position in range(len(self)):
            yield self._id(position)

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """The size of all shards together."""
        return sum(self._sizes)
