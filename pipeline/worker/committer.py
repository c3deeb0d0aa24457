"""Windows of a worker go to storage, whole and in order; a task is closed when all of its windows are there."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from pipeline.errors import AlreadyCommitted, CorruptShard, PipelineError, Unhandled, under_way
from pipeline.inputs.tar.writing import write_samples
from pipeline.logs.context import bound
from pipeline.logs.text import raised_at, traceback_of
from pipeline.messages import Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.records import LabelRecord, RawSample, SampleFailure
from pipeline.run.ledger import Ledger
from pipeline.storage.names import generated_name, is_tar_name
from pipeline.worker.window import TaskEnd, WindowWork

LONGEST = 500  # characters of an error on its way to the driver
logger = logging.getLogger(__name__)


class Committer:
    """Commits windows and closes tasks.

    committed: windows on storage, by task. over: tasks that ended early, of which no more windows are made, with the
    failure that `close` still returns.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.committed: dict[ShardTask, set[int]] = {}
        self.over: dict[ShardTask, ShardFailure | None] = {}
        self.quarantine_bytes = True  # whether those of samples that kill workers are kept
        self.slowest_s = 0.0  # of all commits

    def commit(self, work: WindowWork) -> Receipt | ShardFailure | None:
        """Put a window on storage, once its rows are encoded.

        None where its task is over: a commit has failed, or another driver works on the shard.
        """
        if work.task in self.over:
            return None
        began = perf_counter()
        for batch in work.encoding:
            batch.result()
        records = [work.records[raw.index] for raw in work.samples]
        try:
            with under_way():
                if "webdataset" in self.ledger.run.also:
                    self.ledger.writer.commit_extra(work.task, work.number, as_webdataset(work.samples, records))
                end = work.samples[-1].end
                receipt = self.ledger.writer.commit(work.task, work.number, records, end, work.seconds)
        except PipelineError as error:
            self.over[work.task] = None
            return failure_of(work.task, error)
        self.slowest_s = max(self.slowest_s, perf_counter() - began)
        if receipt.wasted and work.task.last_window != work.number:
            self.over[work.task] = failure_of(work.task, AlreadyCommitted(f"window {work.number} was there already"))
        self.committed.setdefault(work.task, set()).add(work.number)
        return receipt

    def quarantine(self, task: ShardTask, failure: SampleFailure) -> None:
        """Keep a sample that kills workers under failures/, for people to look at."""
        raw = failure.raw
        name = f"failures/{task.shard.id}.{raw.index:08d}.{failure.reason}"
        record = {"shard": task.shard.url, "index": raw.index, "key": raw.key, "error": failure.error}
        self.ledger.store.put_new(f"{name}.json", json.dumps(record).encode())
        if raw.image and self.quarantine_bytes:
            self.ledger.store.put_new(f"{name}.{raw.image}", raw.members[raw.image])

    def close(self, task: ShardTask, end: TaskEnd) -> TaskDone | ShardFailure | None:
        """End a task that was read to its end, or as far as it went."""
        own_windows = self.committed.pop(task, set())
        if task in self.over:
            return self.over.pop(task)  # it may come back as another attempt
        if end.ended:
            return TaskDone(task, ended=True)
        if end.error:
            return failure_of(task, end.error)
        if task.last_window is not None:
            return TaskDone(task)
        windows = -(-end.samples // self.ledger.run.window)
        try:
            with under_way():
                ended = self.ledger.writer.commit_end(task.shard, windows, end.samples, own_windows)
            return TaskDone(task, windows, ended)
        except PipelineError as error:
            return failure_of(task, error)


def failure_of(task: ShardTask, error: PipelineError) -> ShardFailure:
    """An error as the value that goes to the driver; an error that may be our own fault names its line."""
    offset = error.offset if isinstance(error, CorruptShard) else None
    text, bug = str(error)[:LONGEST], None if error.expected else error
    with bound(shard=task.shard.id):
        logger.log(logging.ERROR if bug else logging.DEBUG, "%s: %s", error.kind, text, exc_info=bug)
    if bug and (line := raised_at(bug)):
        text += f" ({line})"
    trace = traceback_of(bug) if bug else ""
    return ShardFailure(task, error.kind, text, error.retryable, offset, traceback=trace)


def as_webdataset(samples: Sequence[RawSample], records: Sequence[LabelRecord]) -> bytes:
    """A window as a WebDataset tar: the original members, and the label map as `label_map.png` beside them.

    A sample whose key is no name for a tar, or is another sample's too, gets a made name: readers would pass over it,
    or take two samples for one. Raises Unhandled where a tar cannot hold the samples.
    """
    keys = Counter(raw.key for raw in samples)

    def name(raw: RawSample, shard: str) -> str:
        alone = keys[raw.key] == 1 and is_tar_name(raw.key)
        return raw.key if alone else generated_name(raw.key, shard, raw.index)

    try:
        return write_samples(
            (
                name(raw, record.shard),
                {**raw.members, **({"label_map.png": record.label_map} if record.label_map else {})},
            )
            for raw, record in zip(samples, records, strict=True)
        )
    except (ValueError, OverflowError) as error:
        raise Unhandled(f"samples from {samples[0].key} on cannot be written as a tar: {error}") from error
