"""Repair: what is broken or foreign in a run's folder is set aside, so that the next `label` makes it again.

<output>/quarantine/<name>.<attempt>   a copy; attempt: 12 hex digits of its content's digest: none is kept twice
<output>/labels/<window>.broken        beside a window that could not be deleted: readers pass over that revision

The one place that deletes what a run holds: an operator's command, with rights of its own. What a declared run was made
from is put back from its manifest: run.json and the pinned shards.
"""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from time import time
from typing import Any

from pipeline import documents, table
from pipeline.errors import CommitConflict, ConfigError
from pipeline.records import Shard
from pipeline.run.commit import read_end
from pipeline.run.compacted import FOLDER as COMPACTED
from pipeline.run.compacted import read_compacted
from pipeline.run.layout import BROKEN, LABELS, REFERENCE, ROLL_UPS, list_states
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import MANIFEST, PARQUET, SUCCESS, Totals, last_manifest, read_manifest
from pipeline.run.open import EDITED, RUN, free_pin, pins, read_run
from pipeline.run.status import Note, notes_of
from pipeline.run.verify import audit
from pipeline.storage.object_store import LARGE_NOTE, Store
from pipeline.table.label_map import decode_label_map
from pipeline.table.window_metadata import WindowMetadata
from pipeline.watch import SILENCE_S

QUARANTINE, DERIVED = "quarantine", "derived"
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
    number, run, proved = max(last_manifest(store)), b"", list[Shard]()
    with suppress(ValueError, FileNotFoundError):  # told below
        rows, seal = read_manifest(store, number)
        run = seal.run.encode() if seal else b""
        proved = [
            Shard(r.shard, r.url, r.size, r.etag, r.url) for r in rows if r.size is not None and r.etag is not None
        ]
    said = [] if run else list(_footers(store))
    if why := _doubt(store, run, said):
        yield RUN, why, run
    yield from _broken_pins(store, proved, said)
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
            yield name, str(error), None
    readable = {file.name for file in read_compacted(store)}
    yield from ((n, "no compacted file of ours", None) for n, _ in store.list(f"{COMPACTED}/") if n not in readable)


def _footers(store: Store) -> Iterator[WindowMetadata]:
    """What windows say of themselves, if they have their names: witnesses where nothing was proved."""
    for window in (window for state in list_states(store).values() for window in state.windows.values()):
        with suppress(ValueError), store.reader(window.name, window.size) as stream:
            said = table.read_window_metadata(stream)
            if (said.shard, said.window) == (window.shard, window.window):
                yield said


def _doubt(store: Store, proved: bytes, said: Sequence[WindowMetadata]) -> str:
    """Why run.json is not believed; nothing where it is, may be of a later version, or is for `label` to write."""
    try:
        data = store.get(RUN)
        if proved:
            return "" if data == proved else "not the one that was proved complete"
        run = read_run(store)
    except FileNotFoundError:
        return "gone" if proved else ""
    except ConfigError as error:
        why = str(error)
    else:
        votes = Counter((each.fingerprint, each.first_index // each.window) for each in said if each.window)
        most = max(votes.values(), default=0) > max(1, votes[run.fingerprint, run.window])
        why = "not what its windows say" if most else EDITED if run.newer or run.labels_version is None else ""
    with suppress(ValueError, KeyError, TypeError):
        made = documents.from_json(dict[str, Any], data)["made_with"]["diffseg"]
        return "" if _numbers(made) > _numbers(version("diffseg")) else why
    return why


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _broken_pins(
    store: Store, proved: list[Shard], said: Sequence[WindowMetadata]
) -> Iterator[tuple[str, str, bytes | None]]:
    """Lists of shards that cannot be read, repeat a shard, or are not what was proved, or what windows and ends say."""
    expected, seen, broken, names = {shard.id: shard for shard in proved}, set[str](), dict[str, str](), list[str]()
    votes = Counter((each.shard, each.size, each.etag) for each in said)
    for shard in {each.shard for each in said}:
        with suppress(CommitConflict):
            if end := read_end(store, shard):
                votes[shard, end.size, end.etag] += 1
    most = {shard: count for (shard, *_), count in reversed(votes.most_common())}
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
        elif any(most.get(shard.id, 0) > max(1, votes[shard.id, shard.size, shard.etag]) for shard in shards):
            broken[name] = "not what its windows say"
        else:
            seen |= ids
    lost = [shard for shard in proved if shard.id not in seen]
    if lost and not broken:
        broken[free_pin(names)] = "gone"
    for place, (name, why) in enumerate(broken.items()):
        yield name, why, table.encode_shards(lost) if lost and not place else None
