"""The proof that a run is complete: every input sample has exactly one row, made from the input that was pinned."""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError, PipelineError
from pipeline.inputs.reader import read_shard
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.commit import End
from pipeline.run.layout import ShardState, WindowObject, gaps
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import Checked
from pipeline.run.open import EDITED, RUN
from pipeline.table.window_metadata import WindowMetadata, digest_of

THREADS = 16  # shards checked side by side: the work is waiting for storage
logger = logging.getLogger(__name__)


def audit(ledger: Ledger, *, full: bool = False) -> Iterator[Checked]:
    """Check every shard, in order, from window metadata and end records.

    full: read every row again (indices, digest), and the source shards' own bytes to count their samples.
    """
    states = ledger.states()
    foreign = set(states) - set(ledger.shards)

    def check(shard: Shard) -> Checked:
        return _check(ledger, shard, states.get(shard.id, ShardState()), full)

    yield from prefetch_map(check, ledger.shards.values(), depth=THREADS, threads=THREADS)
    for name in sorted(foreign):
        state = states[name]
        faults = _strays(state)
        if state.windows or state.ended:
            faults.append(f"labels/{name}.*: no such shard among the inputs")
        yield Checked(Shard(name, "", 0, ""), len(state.windows), 0, {}, tuple(faults))
    if ledger.run.labels_version is None:
        yield Checked(Shard(RUN, "", 0, ""), 0, 0, {}, (f"{RUN} {EDITED}",))


def _check(ledger: Ledger, shard: Shard, state: ShardState, full: bool) -> Checked:
    faults = _strays(state)
    rows, failed = 0, Counter[str]()
    end, problems = _end(ledger, shard, state)
    numbers = sorted(number for number in state.windows if end is None or number < end.windows)
    for number in numbers:
        window = state.windows[number]
        try:
            metadata = ledger.window_metadata(window)
            faults += _metadata_faults(ledger, shard, number, metadata, last=number == numbers[-1])
            faults += _row_faults(ledger, window, metadata) if full else []
        except (ValueError, FileNotFoundError, PipelineError) as error:
            logger.debug("%s: %s", window.name, error, exc_info=error)
            faults.append(str(error))
            continue
        rows += metadata.rows
        failed.update(metadata.failed)
    faults += _end_faults(shard, state, end, rows) if end else problems
    lost = gaps(shard, state, end.windows) if end else []
    repeated = None
    if full and not faults:
        fault, repeated = _compare_with_source(ledger, shard, state)
        faults += [fault] if fault else []
    retries = sum(window.revision for window in state.windows.values())
    return Checked(
        shard, len(state.windows), rows, dict(failed), tuple(faults), state.size, retries, tuple(lost), repeated
    )


def _strays(state: ShardState) -> list[str]:
    return [f"{name}: no object of this run" for name in state.strays]


def _metadata_faults(ledger: Ledger, shard: Shard, number: int, metadata: WindowMetadata, last: bool) -> list[str]:
    window = ledger.run.window
    first = number * window
    if metadata.rows != window and not last:
        return [f"{shard.id} window {number}: {metadata.rows} rows from {first}, not {window}"]
    return []


def _row_faults(ledger: Ledger, window: WindowObject, metadata: WindowMetadata) -> list[str]:
    with ledger.store.reader(window.name, window.size) as stream:
        try:
            records = table.read_records(stream)
        except ValueError as error:
            logger.debug("%s: %s", window.name, error, exc_info=error)
            return [f"{window.name}: {error}"]
    indices = [record.index for record in records]
    if indices != list(range(metadata.first_index, metadata.first_index + metadata.rows)):
        return [f"{window.name}: indices are not {metadata.first_index} onwards"]
    if digest_of(records) != metadata.digest:
        return [f"{window.name}: rows do not match their digest"]
    return _copy_faults(ledger, window, metadata) if ledger.is_compacted(window) else []


def _copy_faults(ledger: Ledger, window: WindowObject, metadata: WindowMetadata) -> list[str]:
    """Faults of a window's copy in a compacted file, which readers prefer."""
    try:
        records = [table.as_record(row) for row in ledger.rows(windows=[window], stored=True)]
    except (ConfigError, TypeError, KeyError) as error:
        logger.debug("%s, compacted: %s", window.name, error, exc_info=error)
        return [str(error)]
    if digest_of(records) != metadata.digest:
        return [f"{window.name}: its rows in compacted/ are others; remove that folder and compact again"]
    return []


def _end(ledger: Ledger, shard: Shard, state: ShardState) -> tuple[End | None, list[str]]:
    """A shard's end record, or the faults that explain why there is none."""
    try:
        end = ledger.end(shard.id) if state.ended else None
    except PipelineError as error:
        logger.debug("%s: %s", shard.id, error, exc_info=error)
        return None, [str(error)]
    if end is None:
        reason = ledger.last_failure(shard.id)
        return None, [f"{shard.url}: not read to its end" + (f"; {reason}" if reason else "")]
    return end, []


def _end_faults(shard: Shard, state: ShardState, end: End, rows: int) -> list[str]:
    faults = [
        f"{shard.id} {_windows(task)}: missing, its shard has {end.windows} windows"
        for task in gaps(shard, state, end.windows)
    ]
    faults += [
        f"{shard.id} window {number}: beyond the shard's end" for number in state.windows if number >= end.windows
    ]
    if (end.size, end.etag) != (shard.size, shard.etag):
        faults.append(f"{shard.url}: read as {end.size} bytes, version {end.etag}; pinned {shard.size}, {shard.etag}")
    if not faults and rows != end.rows:
        faults.append(f"{shard.url}: {end.rows} samples read, {rows} rows committed")
    return faults


def _windows(task: ShardTask) -> str:
    first, last = task.first_window, task.last_window
    return f"window {first}" if first == last else f"windows {first} to {last}"


def _compare_with_source(ledger: Ledger, shard: Shard, state: ShardState) -> tuple[str | None, int]:
    """The first difference between rows and the shard's own bytes, and how many samples repeat a key."""
    seen, repeated = set[int](), 0
    windows = (state.windows[number] for number in sorted(state.windows))
    rows = (row for window in windows for row in _rows(ledger, window, ("index", "key", "image_sha256")))
    try:
        samples = read_shard(shard, image_key=ledger.run.image_key, whole=False)
        for sample, row in zip_longest(samples, rows):
            if sample is None or row is None or (sample.index, sample.key) != (row["index"], row["key"]):
                found = "nothing" if sample is None else f"sample {sample.index} ({sample.key})"
                labelled = "nothing" if row is None else f"row {row['index']} ({row['key']})"
                return f"{shard.url}: the source has {found} where the labels have {labelled}", repeated
            if sample.is_other_than(row["image_sha256"]):
                return f"{shard.url}: sample {sample.index} ({sample.key}) is not the image that was labelled", repeated
            key = hash(sample.key)
            repeated += key in seen
            seen.add(key)
    except (ValueError, FileNotFoundError, PipelineError) as error:
        logger.debug("%s: %s", shard.id, error, exc_info=error)
        return f"{shard.url}: {error}", repeated
    return None, repeated


def _rows(ledger: Ledger, window: WindowObject, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    with ledger.store.reader(window.name, window.size) as stream:
        yield from table.read_rows(stream, columns)
