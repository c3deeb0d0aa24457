"""The shards of a run in little memory: a driver holds them all for as long as it lives, and there may be millions."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from pipeline.records import READER, Shard

_SEPARATOR = "\0"


class ShardIndex(Mapping[str, Shard]):
    """Shards by id, in the order they were pinned: their text in one block, about a hundred bytes a shard.

    A shard is built anew each time it is asked for, by id (a binary search) or by its place.
    """

    def __init__(self, shards: Iterable[Shard] = (), reader: int = READER) -> None:
        """reader: of their run, whatever they were given with."""
        self._reader = reader
        text, self._ends, self._sizes, ids = bytearray(), array("Q", [0]), array("Q"), []
        self._files: dict[int, str | bytes] = {}  # by place; few shards are folders
        for place, shard in enumerate(shards):
            source = "" if shard.source == shard.url else shard.source
            text += _SEPARATOR.join((shard.id, shard.url, shard.etag, source)).encode()
            self._ends.append(len(text))
            self._sizes.append(shard.size)
            ids.append(shard.id)
            if shard.files:
                self._files[place] = shard.files
        self._text = bytes(text)
        self._by_id = array("L", sorted(range(len(ids)), key=ids.__getitem__))

    def at(self, place: int) -> Shard:
        """The shard that was pinned as the place-th, from 0."""
        id_, url, etag, source = self._text[self._ends[place] : self._ends[place + 1]].decode().split(_SEPARATOR)
        return Shard(id_, url, self._sizes[place], etag, source or url, self._files.get(place, ""), self._reader)

    def place(self, id_: str) -> int:
        """The place of a shard. Raises KeyError where it is none of these."""
        found = bisect_left(self._by_id, id_, key=self._id)
        if found == len(self._by_id) or self._id(self._by_id[found]) != id_:
            raise KeyError(id_)
        return self._by_id[found]

    def _id(self, place: int) -> str:
        first = self._ends[place]
        return self._text[first : self._text.index(0, first)].decode()

    def __getitem__(self, id_: str) -> Shard:
        return self.at(self.place(id_))

    def __iter__(self) -> Iterator[str]:
        for place in range(len(self)):
            yield self._id(place)

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """Of all shards together."""
        return sum(self._sizes)
