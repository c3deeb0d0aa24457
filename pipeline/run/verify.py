"""The proof that a run is complete: every input sample has exactly one row, made from the input that was pinned."""

import logging
from collections import Counter
from collections.abc import Container, Iterator
from itertools import zip_longest
from typing import Any

from diffseg.cut import Cut
from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import CommitConflict, ConfigError, PipelineError
from pipeline.inputs.reader import read_shard
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.commit import End, last_failure
from pipeline.run.layout import LABELS, ShardState, WindowObject, end_name, gaps
from pipeline.run.ledger import Ledger, OtherRun
from pipeline.run.manifest import REPAIR, Checked, Fault
from pipeline.run.open import EDITED, RUN
from pipeline.table.cuts import cuts_of
from pipeline.table.label_map import decode_label_map
from pipeline.table.window_metadata import WindowMetadata, digest_of

THREADS = 16  # shards checked side by side: the work is waiting for storage
SOURCE = "bring the shard back as it was pinned, or label it to another --output"
UNREAD = "`diffseg verify` again, once storage gives it"
COPY = "`diffseg verify --repair` sets it aside, and `diffseg compact` makes it again"
logger = logging.getLogger(__name__)


def audit(ledger: Ledger, *, full: bool = False, rows: Container[str] = ()) -> Iterator[Checked]:
    """Check every shard, in order, from window metadata and end records.

    full: read every row again (indices, digest), and the source shards' own bytes to count their samples. rows: ids of
    shards whose rows are read again in any case.
    """
    states = ledger.states()
    foreign = set(states) - set(ledger.shards)

    def check(shard: Shard) -> Checked:
        return _check(ledger, shard, states.get(shard.id, ShardState()), full, full or shard.id in rows)

    yield from prefetch_map(check, ledger.shards.values(), depth=THREADS, threads=THREADS)
    for name in sorted(foreign):
        state = states[name]
        faults = _strays(state)
        if state.windows or state.ended:
            objects = [name for name, _ in ledger.store.list(f"{LABELS}/{name}.") if name not in state.strays]
            faults.append(Fault(f"{LABELS}/{name}.*: no such shard among the inputs", tuple(objects)))
        if faults:
            yield Checked(Shard(name, "", 0, ""), len(state.windows), 0, {}, tuple(faults))
    if ledger.run.labels_version is None:
        yield Checked(Shard(RUN, "", 0, ""), 0, 0, {}, (Fault(f"{RUN} {EDITED}", (), REPAIR),))


def _check(ledger: Ledger, shard: Shard, state: ShardState, full: bool, read: bool) -> Checked:
    faults, sound, failed = _strays(state), list[WindowMetadata](), Counter[str]()
    end, problems = _end(ledger, shard, state)
    numbers = sorted(number for number in state.windows if end is None or number < end.windows)
    for number in numbers:
        window = state.windows[number]
        try:
            metadata = ledger.window_metadata(window)
            if metadata.rows != ledger.run.window and number != numbers[-1]:
                raise ValueError(f"{window.name}: {metadata.rows} rows, not {ledger.run.window}")
            if read:
                _check_rows(ledger, window, metadata)
        except ValueError as error:
            logger.debug("%s: %s", window.name, error, exc_info=error)
            objects = (window.name, *(ledger.copies_of(window) if read else ()))  # nothing tells a copy's rows now
            faults.append(Fault(str(error), objects, others=isinstance(error.__cause__, OtherRun)))
            continue
        except (FileNotFoundError, PipelineError) as error:
            faults.append(Fault(str(error), todo=UNREAD))
            continue
        faults += _copy_faults(ledger, window, metadata) if read else []
        sound.append(metadata)
        failed.update(metadata.failed)
    rows, repeated = sum(metadata.rows for metadata in sound), None
    faults += _end_faults(shard, state, end, rows if len(sound) == len(numbers) else end.rows) if end else problems
    lost = tuple(gaps(shard, state, end.windows)) if end else ()
    if full and not faults:
        fault, repeated = _compare_with_source(ledger, shard, state)
        faults += [Fault(fault, todo=SOURCE)] if fault else []
    windows, retries = len(state.windows), sum(window.revision for window in state.windows.values())
    told = tuple(faults)
    return Checked(shard, windows, rows, dict(failed), told, state.size, retries, lost, repeated, state.version)


def _strays(state: ShardState) -> list[Fault]:
    return [Fault(f"{name}: no object of this run", (name,)) for name in state.strays]


def _check_rows(ledger: Ledger, window: WindowObject, metadata: WindowMetadata) -> None:
    with ledger.store.reader(window.name, window.size) as stream:
        try:
            records = table.read_records(stream)
        except ValueError as error:
            raise ValueError(f"{window.name}: {error}") from error
    indices = [record.index for record in records]
    if indices != list(range(metadata.first_index, metadata.first_index + metadata.rows)):
        raise ValueError(f"{window.name}: indices are not {metadata.first_index} onwards")
    if digest_of(records) != metadata.digest:
        raise ValueError(f"{window.name}: rows do not match their digest")
    try:
        for record in records:
            if record.label_map:
                decode_label_map(record.label_map)
            if record.tree:
                cuts_of({"leaf_map": record.leaf_map, "tree": record.tree}, [Cut(height=0.0)])
    except ConfigError as error:
        raise ValueError(f"{window.name}: {str(error).partition(';')[0]}") from error


def _copy_faults(ledger: Ledger, window: WindowObject, metadata: WindowMetadata) -> list[Fault]:
    """Faults of a window's copy in a compacted file, which readers prefer."""
    copies = ledger.copies_of(window)
    if not copies:
        return []
    try:
        records = [table.as_record(row) for row in ledger.rows(windows=[window], stored=True)]
    except (ConfigError, TypeError, KeyError) as error:
        logger.debug("%s, compacted: %s", window.name, error, exc_info=error)
        return [Fault(str(error), copies, COPY)]
    if digest_of(records) != metadata.digest:
        return [Fault(f"{window.name}: its rows in compacted/ are others", copies, COPY)]
    return []


def _end(ledger: Ledger, shard: Shard, state: ShardState) -> tuple[End | None, list[Fault]]:
    """A shard's end record, or the faults that explain why there is none."""
    try:
        end = ledger.end(shard.id) if state.ended else None
    except PipelineError as error:
        logger.debug("%s: %s", shard.id, error, exc_info=error)
        foreign = isinstance(error, CommitConflict)
        return None, [Fault(str(error), (end_name(shard.id),)) if foreign else Fault(str(error), todo=UNREAD)]
    if end is None:
        reason = last_failure(ledger.store, shard.id)
        return None, [Fault(f"{shard.url}: not read to its end" + (f"; {reason}" if reason else ""))]
    return end, []


def _end_faults(shard: Shard, state: ShardState, end: End, rows: int) -> list[Fault]:
    """Where the end record and the windows disagree, either may be wrong: both are made again."""
    name = end_name(shard.id)
    lost = gaps(shard, state, end.windows)
    faults = [Fault(f"{shard.id} {_windows(task)}: missing, its shard has {end.windows} windows") for task in lost]
    for number, window in sorted(state.windows.items()):
        if number >= end.windows:
            faults.append(Fault(f"{shard.id} window {number}: beyond the shard's end", (window.name, name)))
    if (end.size, end.etag) != (shard.size, shard.etag):
        told = f"{shard.url}: read as {end.size} bytes, version {end.etag}; pinned {shard.size}, {shard.etag}"
        faults.append(Fault(told, (name,)))
    if not faults and rows != end.rows:
        last = [state.windows[max(state.windows)].name] if state.windows else []
        faults.append(Fault(f"{shard.url}: {end.rows} samples read, {rows} rows committed", (name, *last)))
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
            if sample is None or row is None or (sample.index, sample.key) != (row["index"], row["key"] or sample.key):
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
