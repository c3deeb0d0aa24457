"""What a worker has in hand, told to the driver before it is touched."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.logs.context import bound
from pipeline.messages import Heartbeat, ShardTask


class InFlight(dict[object, Heartbeat]):
    """What each thread of a worker has in hand now. window: samples."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self._window = window

    @contextmanager
    def at(self, task: ShardTask, first: int, last: int) -> Iterator[None]:
        """Says which samples this thread is at, for the case that it never comes back."""
        thread = threading.get_ident()
        self[thread] = beat = Heartbeat(task.shard.id, first // self._window, first, last)
        with bound(shard=beat.shard, window=beat.window):
            yield
        del self[thread]
