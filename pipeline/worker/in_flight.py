"""The samples that each thread of a worker has at hand, told to the driver before they are touched."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.logs.context import bound
from pipeline.messages import Heartbeat, ShardTask


class InFlight:
    """Samples at hand, by thread. window: samples."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._heartbeats: dict[object, Heartbeat] = {}

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        """What every thread has at hand now, and the piece of a probe where one goes on."""
        return tuple(self._heartbeats.copy().values())

    @contextmanager
    def at(self, task: ShardTask, indices: Sequence[int]) -> Iterator[None]:
        """This thread has some samples of a window at hand while the block runs.

        There is no `finally`: where the block raises, its samples stay at hand, and the driver learns from the worker's
        last report at which samples it ended.
        """
        thread = threading.get_ident()
        self._heartbeats[thread] = beat = self._beat(task, indices)
        with bound(shard=beat.shard, window=beat.window):
            yield
        del self._heartbeats[thread]

    def launched(self, task: ShardTask, indices: Sequence[int]) -> None:
        """The device has some samples of a window at hand, or none any more, whatever the threads do."""
        self._put("launched", self._beat(task, indices) if indices else None)

    def probe(self, piece: Heartbeat | None) -> None:
        """The whole worker has a piece of a probe at hand, or none any more."""
        self._put("probe", piece)

    def _put(self, owner: str, beat: Heartbeat | None) -> None:
        self._heartbeats.pop(owner, None)
        if beat:
            self._heartbeats[owner] = beat

    def _beat(self, task: ShardTask, indices: Sequence[int]) -> Heartbeat:
        first, last = min(indices), max(indices)
        whole = last - first + 1 == len(indices)
        return Heartbeat(
            task.shard.id, first // self._window, first, last, indices=() if whole else tuple(sorted(indices))
        )
