"""`--sample`: some windows of a run, drawn by seed, in place of all of them.

A sample is a sample of whole windows: the unit of commit stays what it is, so a sampled run is a run like any other,
of which some windows are there. The same command resumes it; one without `--sample` labels the rest. Every sample of
the input has the same chance, as far as counts are known: windows are drawn with equal chances from all there are. With
the same shards and seed a larger sample holds the smaller one.
"""

import random
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pipeline.inputs.count import count
from pipeline.messages import ShardTask
from pipeline.records import Shard

Windows = Mapping[str, Collection[int]]  # by shard id


@dataclass(frozen=True, slots=True)
class DrawnWindows:
    """Windows that were drawn. bytes: of the input, from the beginning of each shard to the last of them."""

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
        place = rng.randrange(ends[-1])
        which = bisect_right(ends, place)
        shard, number = shards[which], place - (ends[which - 1] if which else 0)
        mine = drawn.setdefault(shard, set())
        if number not in mine:
            mine.add(number)
            held += min(window, counts[shard] - number * window)
    return drawn


def within(tasks: Iterable[ShardTask], windows: Windows) -> list[ShardTask]:
    """The part of tasks that lies in these windows, as runs of neighbours; none is open to the end of its shard."""
    parts: list[ShardTask] = []
    for task in tasks:
        first: int | None = None
        mine = sorted(n for n in windows.get(task.shard.id, ()) if _holds(task, n))
        for place, number in enumerate(mine):
            first = number if first is None else first
            if place + 1 == len(mine) or mine[place + 1] != number + 1:
                parts.append(replace(task, first_window=first, last_window=number))
                first = None
    return parts


def _holds(task: ShardTask, window: int) -> bool:
    return task.first_window <= window and (task.last_window is None or window <= task.last_window)
