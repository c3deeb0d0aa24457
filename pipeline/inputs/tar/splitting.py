"""Splitting of large shards: their windows are distributed where workers would otherwise be idle.

Only uncompressed tars and folders are split: a window in their middle is reached by headers, or names, alone.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from pipeline.errors import PipelineError
from pipeline.inputs.reader import HEADERS_ONLY, read_shard
from pipeline.messages import ShardTask
from pipeline.records import Shard

READ = 64  # samples at a shard's beginning, from which the size of its samples is estimated
logger = logging.getLogger(__name__)


def split(tasks: Iterable[ShardTask], workers: int, window: int) -> Iterator[ShardTask]:
    """Split tasks into at least as many as there are workers, where that is possible.

    window: samples. The number of windows of a tar is only estimated: a task beyond its end finds no samples, the last
    task is open to the end.
    """
    source = iter(tasks)
    first = list(islice(source, workers))
    spare = workers - len(first)
    total = sum(task.shard.size for task in first)
    for task in first:
        is_open = task.last_window is None and task.shard.url.lower().endswith((".tar", "/"))
        extra = -(-spare * task.shard.size // total) if spare > 0 and is_open else 0
        yield from _pieces(task, 1 + extra, _windows(task.shard, window) if extra else 0)
    yield from source


def _windows(shard: Shard, window: int) -> int:
    """Estimated number of windows of a shard; 0 where it cannot be read: a worker will report why."""
    try:
        first = list(islice(read_shard(shard, first=HEADERS_ONLY, whole=False), READ))
    except (PipelineError, FileNotFoundError) as error:
        logger.debug("%s is not split: %s", shard.url, error)
        return 0
    return shard.size * len(first) // (first[-1].end * window) if first else 0


def _pieces(task: ShardTask, count: int, windows: int) -> list[ShardTask]:
    left = windows - task.first_window
    count = min(count, left)
    if count < 2:
        return [task]
    starts = [task.first_window + left * piece // count for piece in range(count)]
    ends = [start - 1 for start in starts[1:]]
    return [replace(task, first_window=a, last_window=b) for a, b in zip(starts, [*ends, None], strict=True)]
