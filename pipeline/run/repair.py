"""Repair: what is broken or foreign in a run's folder is set aside, so that the next `label` makes it again.

<output>/quarantine/<name>.<attempt>   a copy; attempt: 12 hex digits of its content's digest: none is kept twice
<output>/labels/<window>.broken        beside a window that could not be deleted: readers pass over that revision

The one place that deletes what a run holds: an operator's command, with rights of its own. What a declared run was made
from is put back from its manifest: run.json and the pinned shards.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from time import time
from typing import Any

from pipeline import table
from pipeline.errors import ConfigError
from pipeline.records import Shard
from pipeline.run.compacted import FOLDER as COMPACTED
from pipeline.run.compacted import read_compacted
from pipeline.run.layout import BROKEN, LABELS, REFERENCE
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import MANIFEST, PARQUET, SUCCESS, Totals, last_manifest, read_manifest
from pipeline.run.open import RUN, free_pin, pins, read_run
from pipeline.run.spec import NewerRun
from pipeline.run.status import notes_of
from pipeline.run.verify import audit
from pipeline.storage.object_store import LARGE_NOTE, Store
from pipeline.table.label_map import decode_label_map
from pipeline.watch import SILENCE_S

QUARANTINE, DERIVED = "quarantine", "derived"
logger = logging.getLogger(__name__)
AGAIN = "the same `diffseg label` writes it again, then `diffseg verify --repair` looks at what it pins"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done about a fault. name: of the object. mended: no hand is needed but that of the next `label`."""

    name: str
    why: str
    done: str
    mended: bool = True

    def __str__(self) -> str:
        return f"{self.why if self.name in self.why else f'{self.name}: {self.why}'}; {self.done}"


def repair(store: Store, *, full: bool = False, dry_run: bool = False, now: float | None = None) -> Iterator[Repair]:
    """Set aside everything in a run's folder that is broken or foreign, reading every row.

    full: hold rows against the source shards too. dry_run: only say what would be done. now: seconds of the clock.
    Raises ConfigError where a driver is at work, StorageError.
    """
    _expect_no_driver(store, time() if now is None else now)
    for name, why, content in _broken_notes(store):
        yield _mend(store, name, why, content, dry_run)
    try:
        ledger = Ledger.open(store.url)
    except ConfigError as error:
        yield Repair("", str(error), AGAIN, mended=False)
        return
    done = set[str]()
    for checked in audit(ledger, full=full, rows=ledger.shards):
        for fault in checked.faults:
            if not fault.objects:
                yield Repair("", str(fault), fault.remedy, mended=not fault.todo)
            yield from (_mend(store, name, str(fault), None, dry_run) for name in fault.objects if name not in done)
            done.update(fault.objects)


def set_aside(store: Store, name: str) -> bool:
    """Copy an object into quarantine, prove the copy, then delete the object; False where the store refuses that.

    For `verify --repair` and `withdraw --purge`, which an operator runs: no driver and no worker may call it.
    Raises FileNotFoundError, ConfigError where the copy cannot be written, StorageError.
    """
    digest = _digest(store, name)
    copy = f"{QUARANTINE}/{name}.{digest[:12]}"
    with store.reader(name) as source, store.growing(copy) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if _digest(store, copy) != digest:
        raise ConfigError(f"{store}/{copy}: not the bytes that were copied there: nothing was deleted")
    try:
        store.remove(name)
    except ConfigError:
        return False
    return not store.exists(name)


def _mend(store: Store, name: str, why: str, content: bytes | None, dry_run: bool) -> Repair:
    """Set an object aside, if it exists; content: what is put in its place."""
    then = ", and put back as it was proved" if content else ""
    if dry_run:
        return Repair(name, why, f"would be set aside{then}", mended=False)
    if store.exists(name) and not set_aside(store, name):
        if name.startswith(f"{LABELS}/") and name.endswith(PARQUET):
            store.put_new(name + BROKEN, why.encode())
            return Repair(name, why, "copied and marked: the next `diffseg label` supersedes it")
        return Repair(name, why, "copied, but may not be deleted: see infra/storage", mended=False)
    if content:
        store.put_new(name, content)
    return Repair(name, why, f"set aside{then}")


def _digest(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    with store.reader(name) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _expect_no_driver(store: Store, now: float) -> None:
    for name, note in notes_of(store).items():
        if isinstance(note, str) or note.left or now - note.at >= SILENCE_S:
            continue
        raise ConfigError(
            f"{store}: a driver is at work on this run, by {name} of {now - note.at:.0f} s ago: stop it, "
            f"or repair when {SILENCE_S:.0f} s have passed"
        )


def _broken_notes(store: Store) -> Iterator[tuple[str, str, bytes | None]]:
    """The small objects that are broken: name, why, and what they were where that is known."""
    run, proved, number = "", list[Shard](), max(last_manifest(store))
    if number >= 0:
        try:
            rows, seal = read_manifest(store, number)
            run = seal.run if seal else ""
            proved = [Shard(r.shard, r.url, r.size, r.etag or "", r.url) for r in rows if r.size is not None]
        except ValueError as error:
            yield f"{MANIFEST}{number}{PARQUET}", str(error), None
        except FileNotFoundError:
            logger.debug("%s: %s%s is gone: `label` proves the run again", store, MANIFEST, number)
        try:
            store.document(Totals, f"{SUCCESS}{number}")
        except ValueError as error:
            yield f"{SUCCESS}{number}", str(error), None
        except FileNotFoundError:
            logger.debug("%s: %s%s is gone: `label` proves the run again", store, SUCCESS, number)
    yield from _broken_run(store, run)
    yield from _broken_pins(store, proved)
    try:
        decode_label_map(store.get(REFERENCE))
    except FileNotFoundError:
        pass
    except ConfigError as error:
        yield REFERENCE, str(error), None
    for name, note in notes_of(store).items():
        if isinstance(note, str):
            yield name, note, None
    for name, _ in store.list(f"{DERIVED}/"):
        try:
            if name.endswith(".json"):
                store.document(dict[str, Any], name, LARGE_NOTE)
        except ValueError as error:
            yield name, str(error), None
    readable = {file.name for file in read_compacted(store)}
    for name, _ in store.list(f"{COMPACTED}/"):
        if name not in readable:
            yield name, "no compacted file of ours", None


def _broken_run(store: Store, proved: str) -> Iterator[tuple[str, str, bytes | None]]:
    try:
        if proved and store.get(RUN).decode(errors="replace") != proved:
            yield RUN, "not the one that was proved complete", proved.encode()
        elif not proved:
            read_run(store)
    except FileNotFoundError:
        if proved:
            yield RUN, "gone", proved.encode()
    except ConfigError as error:
        if not isinstance(error.__cause__, NewerRun):
            yield RUN, str(error), None


def _broken_pins(store: Store, proved: list[Shard]) -> Iterator[tuple[str, str, bytes | None]]:
    """Lists of shards that cannot be read, repeat a shard, or say something else than what was proved."""
    expected, seen, broken, names = {shard.id: shard for shard in proved}, set[str](), dict[str, str](), list[str]()
    for name, shards in pins(store):
        names.append(name)
        if isinstance(shards, str):
            broken[name] = shards
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
        yield name, why, table.encode_shards(lost) if lost and not place else None
