"""One big shard for several workers: its windows shared out where workers would else have nothing to do.

Only uncompressed tars and folders: there a window in the middle is reached by headers, or names, alone.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from pipeline.errors import PipelineError
from pipeline.inputs.reader import read_shard
from pipeline.messages import ShardTask
from pipeline.records import Shard

LOOKED_AT = 64  # samples at a shard's beginning that tell how large its samples are
HEADERS_ONLY = 1 << 62  # as the first sample wanted
logger = logging.getLogger(__name__)


def split(tasks: Iterable[ShardTask], workers: int, window: int) -> Iterator[ShardTask]:
    """The same work in at least as many tasks as there are workers, if it can be shared.

    window: samples. How many windows a tar has is only estimated: a task beyond its end finds nothing, the last one is
    open to the end.
    """
    source = iter(tasks)
    first = list(islice(source, workers))
    spare = workers - len(first)
    total = sum(task.shard.size for task in first)
    for task in first:
        extra = -(-spare * task.shard.size // total) if spare > 0 and _is_open(task) else 0
        yield from _pieces(task, 1 + extra, _windows(task.shard, window) if extra else 0)
    yield from source


def _is_open(task: ShardTask) -> bool:
    return task.last_window is None and task.shard.url.lower().endswith((".tar", "/"))


def _windows(shard: Shard, window: int) -> int:
    """About how many windows a shard has; 0 where it cannot be read, which is for a worker to say."""
    try:
        first = list(islice(read_shard(shard, first=HEADERS_ONLY, whole=False), LOOKED_AT))
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
