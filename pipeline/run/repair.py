"""Repair: what is broken or foreign in a run's folder is set aside, so that the next `label` makes it again.

<output>/quarantine/<name>.<attempt>   a copy; attempt: 12 hex digits of its content's digest: none is kept twice
<output>/labels/<window>.broken        beside a window that could not be deleted: readers pass over that revision

Deleting is for an operator's command, with rights of its own (`Store.remove` says who else deletes). What a declared
run was made from is put back from its manifest: run.json and the pinned shards.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from time import time
from typing import Any

from pipeline import documents, table
from pipeline.errors import ConfigError
from pipeline.records import Shard
from pipeline.run.layout import BROKEN, LABELS, REFERENCE, ROLL_UPS
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import MANIFEST, PARQUET, SUCCESS, Totals, last_manifest, read_manifest
from pipeline.run.open import RUN, free_pin, pin_names
from pipeline.run.status import Note, notes_of
from pipeline.run.verify import audit
from pipeline.storage.object_store import LARGE_NOTE, Store
from pipeline.table.label_map import decode_label_map
from pipeline.watch import SILENCE_S

QUARANTINE, DERIVED = "quarantine", "derived"
AGAIN = "the same `diffseg label` writes it if it is gone; a person removes it if it is wrong; then repair again"


def repair(
    store: Store, *, full: bool = False, dry_run: bool = False, now: float | None = None
) -> Iterator[tuple[str, bool]]:
    """Set aside everything in a run's folder that is broken or foreign, reading every row.

    full: hold rows against the source shards too. dry_run: only say what would be done. now: seconds of the clock.
    Yields a line a fault, and whether the next `label` does the rest. Raises ConfigError where a driver is at work,
    StorageError.
    """
    expect_no_driver(store, time() if now is None else now)
    for name, why, content in _broken_notes(store):
        yield _mend(store, name, f"{name}: {why}", content, dry_run)
    try:
        ledger = Ledger.open(store.url)
    except ConfigError as error:
        yield f"{error}; {AGAIN}", False
        return
    faults = [fault for checked in audit(ledger, full=full, rows=ledger.shards) for fault in checked.faults]
    others = sum(fault.others for fault in faults)
    if others > 1 and 2 * others > sum(1 for _ in ledger.windows()):
        yield (
            f"{others} windows say otherwise than {RUN} and inputs/, which seem to be what was changed; {AGAIN}",
            False,
        )
        return
    yield from ((str(fault), not fault.todo) for fault in faults if not fault.objects)
    for name, line in {name: fault.line for fault in faults for name in fault.objects}.items():
        yield _mend(store, name, line if name in line else f"{name}: {line}", b"", dry_run)


def set_aside(store: Store, name: str) -> bool:
    """Copy an object into quarantine, prove the copy, then delete the object; False where the store refuses that.

    For `verify --repair`, which an operator runs: no driver and no worker may call it.
    Raises FileNotFoundError, ConfigError where the copy cannot be written, StorageError.
    """
    digest = _digest(store, name)
    copy = f"{QUARANTINE}/{name}.{digest[:12]}"
    with store.reader(name) as source, store.growing(copy) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if _digest(store, copy) != digest:
        raise ConfigError(f"{store}/{copy}: not the bytes that were copied there: nothing was deleted")
    with suppress(ConfigError):
        store.remove(name)
    return not store.exists(name)


def _digest(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    with store.reader(name) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _mend(store: Store, name: str, line: str, content: bytes, dry_run: bool) -> tuple[str, bool]:
    """Set an object aside, if it exists; content: what is put in its place."""
    then = ", and put back as it was proved" if content else ""
    if dry_run:
        return f"{line}; would be set aside{then}", False
    if store.exists(name) and not set_aside(store, name):
        if not name.startswith(f"{LABELS}/") or not name.endswith(PARQUET):
            return f"{line}; copied, but may not be deleted: see infra/storage", False
        store.put_new(name + BROKEN, line.encode())
        return f"{line}; copied and marked: the next `diffseg label` supersedes it", True
    if content:
        store.put_new(name, content)
    return f"{line}; set aside{then}", True


def expect_no_driver(store: Store, now: float) -> None:
    """Raises ConfigError where a driver has told of itself lately."""
    for name, note in notes_of(store).items():
        if isinstance(note, Note) and not note.left and now - note.at < SILENCE_S:
            raise ConfigError(f"{store}: a driver is at work, by {name}: stop it, and wait {SILENCE_S:.0f} s")


def _broken_notes(store: Store) -> Iterator[tuple[str, str, bytes]]:
    """The small objects that are broken: name, why, and what they were where that is known."""
    number, run, proved = last_manifest(store), b"", list[Shard]()
    with suppress(ValueError, FileNotFoundError):  # told below
        rows, run = read_manifest(store, number)
        proved = [Shard(row.shard, row.url, row.size or 0, row.etag or "", row.url) for row in rows if run]
    try:
        data = store.get(RUN)
        if run and data != run:
            yield RUN, "not the one that was proved complete", run
        elif not run and "segment" not in documents.from_json(dict[str, Any], data):
            yield RUN, "no run.json of ours", b""
    except FileNotFoundError:
        if run:
            yield RUN, "gone", run
    except ValueError as error:
        yield RUN, str(error), b""
    yield from _broken_pins(store, proved)
    notes: dict[str, Callable[[str], object]] = {
        f"{MANIFEST}{number}{PARQUET}": lambda _: read_manifest(store, number),
        f"{SUCCESS}{number}": partial(store.document, Totals),
        REFERENCE: lambda name: decode_label_map(store.get(name)),
    }
    notes |= {name: partial(store.document, Note) for name, _ in store.list(f"{ROLL_UPS}/")}
    derived = (name for name, _ in store.list(f"{DERIVED}/") if name.endswith(".json"))
    notes |= {name: partial(store.document, dict[str, Any], most=LARGE_NOTE) for name in derived}
    for name, read in notes.items():
        try:
            read(name)
        except FileNotFoundError:
            continue  # `label` does without it, or makes it
        except (ValueError, ConfigError) as error:
            yield name, str(error), b""


def _broken_pins(store: Store, proved: list[Shard]) -> Iterator[tuple[str, str, bytes]]:
    """Lists of shards that cannot be read, repeat a shard, or say something else than what was proved."""
    expected, seen, broken = {shard.id: shard for shard in proved}, set[str](), dict[str, str]()
    for name in (names := pin_names(store)):
        try:
            shards = list(table.decode_shards(store.get(name)))
        except ValueError as error:
            broken[name] = str(error)
            continue
        ids = {shard.id for shard in shards}
        if len(ids) < len(shards) or ids & seen:
            broken[name] = "a shard is pinned twice"
        elif ids & expected.keys() and any(expected.get(shard.id) != shard for shard in shards):
            broken[name] = "not as it was proved"
        else:
            seen |= ids
    lost = [shard for shard in proved if shard.id not in seen]
    if lost and not broken:
        broken[free_pin(names)] = "gone"
    for place, (name, why) in enumerate(broken.items()):
        yield name, why, table.encode_shards(lost) if lost and not place else b""
