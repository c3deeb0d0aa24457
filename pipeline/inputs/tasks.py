"""Tasks of a run: random windows, drawn by seed (`--sample`), in place of all of them; and large shards split where
workers would otherwise be idle.

Whole windows are drawn: the unit of commit does not change, so a sampled run is a normal run that has only some of its
windows. Repeating the command resumes it; without `--sample` the rest is labelled. Windows are drawn uniformly, so that
every sample of the input has an equal chance as far as counts are known. With equal shards and seeds a larger sample
contains the smaller one.

Only uncompressed tars and folders are split: a window in their middle is reached by headers, or names, alone.
"""

import logging
import math
import random
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice

from pipeline.errors import PipelineError
from pipeline.inputs.count import count
from pipeline.inputs.reader import HEADERS_ONLY, read_shard
from pipeline.messages import ShardTask
from pipeline.records import Shard

Windows = Mapping[str, Collection[int]]  # by shard id


@dataclass(frozen=True, slots=True)
class DrawnWindows:
    """Drawn windows. bytes: of the input, from the beginning of each shard to its last drawn window."""

    windows: Windows
    bytes: int


def draw_sample(
    shards: Sequence[Shard], images: int, seed: int, *, window: int, image_key: str | None
) -> DrawnWindows | None:
    """Windows of a run's shards that hold about `images` samples; None where that is all of them.

    Raises what counting raises: ConfigError, StorageError, ShardChanged.
    """
    counts = count(shards, image_key)
    if images >= counts.total:
        return None
    windows = draw(counts.samples, window, images, seed)
    size = 0.0
    for shard in shards:
        if numbers := windows.get(shard.id):
            size += shard.size * min(1.0, (max(numbers) + 1) * window / counts.samples[shard.id])
    return DrawnWindows(windows, round(size))


def draw(counts: Mapping[str, int], window: int, images: int, seed: int) -> dict[str, set[int]]:
    """Windows by shard id until they hold `images` samples; all of them where there are no more.

    counts: samples of each shard; window: samples of a window.
    """
    drawn: dict[str, set[int]] = {}
    if images >= sum(counts.values()):
        return {shard: set(range(-(-samples // window))) for shard, samples in counts.items() if samples}
    shards = [shard for shard, samples in counts.items() if samples]
    ends = list(accumulate(-(-counts[shard] // window) for shard in shards))
    rng, held = random.Random(seed), 0
    while held < images:
        position = rng.randrange(ends[-1])
        which = bisect_right(ends, position)
        shard, number = shards[which], position - (ends[which - 1] if which else 0)
        own_windows = drawn.setdefault(shard, set())
        if number not in own_windows:
            own_windows.add(number)
            held += min(window, counts[shard] - number * window)
    return drawn


def within(tasks: Iterable[ShardTask], windows: Windows) -> list[ShardTask]:
    """The part of tasks in these windows, as ranges of consecutive windows; none is open to the end of its shard."""
    parts: list[ShardTask] = []
    for task in tasks:
        last = math.inf if task.last_window is None else task.last_window
        own_windows = sorted(n for n in windows.get(task.shard.id, ()) if task.first_window <= n <= last)
        for _, row in groupby(enumerate(own_windows), lambda item: item[1] - item[0]):
            numbers = [number for _, number in row]
            parts.append(replace(task, first_window=numbers[0], last_window=numbers[-1]))
    return parts


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
