"""Tasks in, decoded samples out, a little ahead of the thread that labels."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

import numpy as np

from diffseg.config import ResolvedConfig
from pipeline.concurrency import prefetch_map
from pipeline.errors import PipelineError, Unhandled
from pipeline.inputs.reader import decode_sample, read_shard
from pipeline.logs.context import bind
from pipeline.messages import ShardTask
from pipeline.records import WITHDRAWN, ImageSample, RawSample, SampleFailure, legible
from pipeline.run.ledger import Ledger
from pipeline.watch import beat
from pipeline.worker.committer import Committer
from pipeline.worker.in_flight import InFlight
from pipeline.worker.stage_timer import Stage, StageTimer
from pipeline.worker.window import TaskEnd

LONGEST = 2_000  # characters of a kept field
Sample: TypeAlias = ImageSample | SampleFailure


class SampleLoader:
    """Reads and decodes the samples of a worker's tasks. moved: when reading last moved, by a byte or a member."""

    def __init__(
        self,
        ledger: Ledger,
        committer: Committer,
        timer: StageTimer,
        in_flight: InFlight,
        prepare: Callable[[np.ndarray], Any],
    ) -> None:
        self._ledger, self._committer, self._timer, self._in_flight = ledger, committer, timer, in_flight
        self._prepare = prepare
        self.threads, self.moved = decode_threads(), 0.0
        self._least = pixels_wanted(ledger.run.segment)

    def decoded(
        self, tasks: Iterable[ShardTask], depth: int
    ) -> Iterator[tuple[ShardTask, Sample | RawSample | TaskEnd]]:
        """Samples in order, each with its task, about `depth` ahead. Samples of a probe stay encoded, as RawSample."""

        def decode(item: tuple[ShardTask, RawSample | TaskEnd]) -> tuple[ShardTask, Sample | RawSample | TaskEnd]:
            task, raw = item
            if isinstance(raw, TaskEnd) or task.probe:  # a piece of a probe is decoded after it was announced
                return task, raw
            with self._timer.working(Stage.DECODE), self._in_flight.at(task, [raw.index]):
                return task, self.decode(raw)

        return prefetch_map(
            decode,
            self._timer.working_through(Stage.READ, self._read(self._timer.handed(tasks))),
            depth=depth,
            threads=self.threads,
            empty=partial(self._timer.waiting, Stage.READ),
            late=partial(self._timer.waiting, Stage.DECODE),
            name="decode",
        )

    def decode(self, raw: RawSample) -> Sample:
        """A sample's image as its segmenter prepares it; decoded at a reduced scale where labels lose nothing by it."""
        if self._ledger.is_withdrawn(raw.key):
            return SampleFailure(replace(raw, key="", members={WITHDRAWN: b""}, image=None), WITHDRAWN, WITHDRAWN)
        if self._ledger.run.keep:
            raw = replace(raw, kept=kept_of(raw, self._ledger.run.keep))
        sample = decode_sample(raw, self._ledger.run.reader, self._least)
        return sample if isinstance(sample, SampleFailure) else replace(sample, image=self._prepare(sample.image))

    def _beat(self) -> None:
        self.moved = monotonic()

    def _read(self, tasks: Iterable[ShardTask]) -> Iterator[tuple[ShardTask, RawSample | TaskEnd]]:
        window, image_key = self._ledger.run.window, self._ledger.run.image_key
        beat.set(self._beat)
        whole = bool(self._ledger.run.also or self._ledger.run.keep)  # otherwise only the image of a sample is wanted
        for task in tasks:
            bind(shard=task.shard.id, window="")
            first = task.first_window * window
            stop = None if task.last_window is None else (task.last_window + 1) * window
            count = 0
            try:
                if task.last_window is None and not task.revision and self._ledger.ended(task.shard):
                    yield task, TaskEnd(0, ended=True)  # another driver has read it to its end
                    continue
                committed = -1  # the last window that another worker had committed before this one came to it
                for raw in read_shard(task.shard, first=first, image_key=image_key, window=window, whole=whole):
                    if (stop is not None and raw.index >= stop) or task in self._committer.over:
                        break
                    count = raw.index + 1
                    if raw.index < first or raw.index // window == committed:
                        continue
                    if raw.index % window == 0 and self._ledger.has(task, raw.index // window):
                        committed = raw.index // window
                        continue
                    yield task, raw
                yield task, TaskEnd(count)
            except PipelineError as error:
                yield task, TaskEnd(count, error)
            except Exception as error:  # noqa: BLE001 - it would end every worker that meets this shard
                unhandled = Unhandled(f"{task.shard.url}: {type(error).__name__}: {error}")
                unhandled.__cause__ = error
                yield task, TaskEnd(count, unhandled)


def kept_of(raw: RawSample, keep: str) -> dict[str, str] | None:
    """Fields of a member that holds a JSON object, each as text. keep: MEMBER:FIELD,...; None: it has none of them."""
    member, _, names = keep.partition(":")
    try:
        found = json.loads(raw.members.get(member, b""))
        values = {name: found[name] for name in names.split(",") if found.get(name) is not None}
    except (ValueError, RecursionError, AttributeError):  # it is somebody else's, and only beside the image
        return None
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {name: legible(text[:LONGEST]) for name, text in texts.items()} or None


def decode_threads() -> int:
    """Threads that decode in one worker of this machine."""
    return max(1, min(4, len(os.sched_getaffinity(0)) - 1))


def pixels_wanted(config: ResolvedConfig) -> int | None:
    """Pixels of an image's longer side that decide its labels; None: all of them.

    That is the side of label maps, or twice the side of the square that the model sees where this is more: no aspect
    makes the model see a longer side.
    """
    if config.mode == "paper" or config.output_size == "source":
        return None
    return max(config.output_size, 2 * config.image_size)
