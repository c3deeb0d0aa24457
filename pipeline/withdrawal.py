"""Samples withdrawn from a run by their keys: no reader shows them any more, and their bytes can be purged.

<output>/withdrawn/<digest>.json   digests of keys, create-only

A key stands for every sample that has it, labelled already or later: `label` gives such a sample a row of the status
`withdrawn` without key, labels or anything else. A purge puts such rows into a new revision of each window and deletes
what held the old ones; an operator runs it with rights of its own (infra/storage).
"""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from time import time

from pipeline import table
from pipeline.derived.corrections import former_corrections
from pipeline.errors import ConfigError
from pipeline.inputs.tar.reading import read_samples
from pipeline.inputs.tar.writing import write_samples
from pipeline.records import OK, WITHDRAWN, LabelRecord, digest_of_key
from pipeline.run.compacted import FOLDER as COMPACTED
from pipeline.run.compacted import read_compacted
from pipeline.run.layout import LABELS, ROLL_UPS, WindowObject, window_name, window_stem
from pipeline.run.ledger import Ledger
from pipeline.run.repair import QUARANTINE, expect_no_driver
from pipeline.storage.names import generated_name
from pipeline.table.window_metadata import digest_of

AT_ONCE = 10_000  # keys of one object


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was withdrawn. rows: that have these keys. repeated: keys of several rows; absent: of none."""

    rows: int
    repeated: tuple[str, ...]
    absent: tuple[str, ...]


def withdraw(ledger: Ledger, keys: Collection[str]) -> Withdrawal:
    """Withdraw every sample with one of these keys. Raises ConfigError where no row has any of them."""
    wanted = {digest_of_key(key): key for key in keys}
    rows = Counter(row["key"] for row in ledger.rows(["key"], stored=True) if digest_of_key(row["key"]) in wanted)
    absent = tuple(key for digest, key in wanted.items() if key not in rows and digest not in ledger.withdrawn)
    if len(absent) == len(wanted):
        raise ConfigError(f"{ledger}: none of {len(wanted):,} keys is in this run, {absent[0]!r} first")
    fresh = sorted(wanted.keys() - ledger.withdrawn)
    for first in range(0, len(fresh), AT_ONCE):
        data = json.dumps(fresh[first : first + AT_ONCE]).encode()
        name = hashlib.blake2b(data, digest_size=8).hexdigest()
        ledger.store.put_same(f"{WITHDRAWN}/{name}.json", data)
    return Withdrawal(rows.total(), tuple(key for key, times in rows.items() if times > 1), absent)


def purge(ledger: Ledger, keys: Collection[str]) -> Iterator[str]:
    """Delete the bytes of everything that was withdrawn; yields the names of the objects that are gone.

    keys: of which notes about failures and progress are deleted too. The same call goes on where another stopped.
    Raises ConfigError where a driver is at work or storage refuses to delete, StorageError.
    """
    expect_no_driver(ledger.store, time())
    ledger = Ledger.open(ledger.store.url)  # with all that is withdrawn by now
    for window in list(ledger.windows()):
        with ledger.store.reader(window.name, window.size) as stream:
            rows = list(table.read_rows(stream, ["key", "status"]))
        if any(row["status"] != WITHDRAWN and ledger.is_withdrawn(row["key"]) for row in rows):
            _rewrite(ledger, window)
    current = {(window.shard, window.window): window for window in ledger.windows() if window.revision}
    cleared = {at: each for at, each in current.items() if WITHDRAWN in ledger.window_metadata(each).failed}
    for name in [*_former(ledger, cleared), *former_corrections(ledger), *_notes(ledger, keys)]:
        ledger.store.remove(name)
        if ledger.store.exists(name):
            raise ConfigError(f"{ledger}/{name}: still there after it was deleted")
        yield name


def _rewrite(ledger: Ledger, window: WindowObject) -> None:
    """Put the next revision of a window, without what was withdrawn."""
    metadata, next_ = ledger.window_metadata(window), window.revision + 1
    with ledger.store.reader(window.name, window.size) as stream:
        records = table.read_records(stream)
    gone = [ledger.is_withdrawn(record.key, record.status) for record in records]
    made = [
        LabelRecord("", record.shard, record.index, WITHDRAWN) if without else record
        for record, without in zip(records, gone, strict=True)
    ]
    if "webdataset" in ledger.run.also:
        with ledger.store.reader(f"webdataset/{window_stem(window.shard, window.window, window.revision)}.tar") as tar:
            data = write_samples(
                (generated_name("", window.shard, row.index), {WITHDRAWN: b""}) if without else (raw.key, raw.members)
                for raw, row, without in zip(read_samples(tar, "window.tar"), made, gone, strict=True)
            )
        ledger.store.put_same(f"webdataset/{window_stem(window.shard, window.window, next_)}.tar", data)
    failed = dict(Counter(record.status for record in made if record.status != OK))
    fresh = replace(metadata, failed=failed, attempt=uuid.uuid4().hex, digest=digest_of(made))
    name = window_name(window.shard, window.window, next_)
    ledger.store.put_new(name, table.encode_window(made, fresh))
    proved = ledger.window_metadata(replace(window, revision=next_, name=name, size=ledger.store.size(name) or 0))
    if proved.digest != fresh.digest:
        raise ConfigError(f"{ledger}/{name}: other rows than were to be written there; nothing was deleted")


def _former(ledger: Ledger, cleared: dict[tuple[str, int], WindowObject]) -> Iterator[str]:
    """Other revisions of the windows, their copies and their tars."""
    for window in cleared.values():
        own, now = (f"{window_stem(window.shard, window.window, revision)}." for revision in (0, window.revision))
        for folder in (LABELS, f"{QUARANTINE}/{LABELS}", "webdataset"):
            names = (name for name, _ in ledger.store.list(f"{folder}/{own}"))
            yield from (name for name in names if folder.startswith(QUARANTINE) or f"/{now}" not in name)
    if cleared:
        yield from (name for name, _ in ledger.store.list(f"{QUARANTINE}/{COMPACTED}/"))
    for file in read_compacted(ledger.store):
        at = ((each, cleared.get((each.shard, each.window))) for each in file.windows)
        if any(now and each.generation != now.revision for each, now in at):
            yield file.name


def _notes(ledger: Ledger, keys: Collection[str]) -> Iterator[str]:
    """Bytes and records of samples that were withdrawn, and notes for people that name one."""
    names = [name for folder in ("failures", ROLL_UPS) for name, _ in ledger.store.list(f"{folder}/")]
    for name in (name for name in names if name.endswith(".json")):
        text = ledger.store.get(name).decode(errors="replace")
        if '"index": ' not in text and any(json.dumps(key)[1:-1] in text for key in keys):
            yield name
        elif any(f'"key": {json.dumps(key)}' in text for key in keys):
            yield from (each for each in names if each.startswith(name.removesuffix("json")))
