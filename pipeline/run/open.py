"""How a driver begins a run or joins the one that is there: room, configuration, pinned inputs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from diffseg.config import LABELS_VERSION
from pipeline import table
from pipeline.errors import ConfigError, StorageError
from pipeline.inputs.folder import file_list
from pipeline.inputs.folder.reading import is_folder
from pipeline.inputs.shards import shard_id
from pipeline.records import READER, Shard
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store

RUN, INPUTS = "run.json", "inputs"
PIN = re.compile(rf"{INPUTS}/\d+\.parquet")
EDITED = "was edited: its fingerprint does not follow from the configuration that stands there"
ROOM = 64 << 20  # bytes an output must have left for a run to begin


def pinned(store: Store) -> Iterator[Shard]:
    """The inputs of a run, in the order they were added. Raises ConfigError where their list is damaged."""
    return _read(store, _pins(store))


def _read(store: Store, pins: Sequence[str]) -> Iterator[Shard]:
    for name in pins:
        try:
            for shard in table.decode_shards(store.get(name)):
                yield _listed(store, shard) if is_folder(shard.url) else shard
        except ValueError as error:
            raise ConfigError(f"{store}/{name}: {error}") from error


def _pins(store: Store) -> list[str]:
    """`inputs/<n>.parquet`, in order of n."""
    names = (name for name, _ in store.list(f"{INPUTS}/") if PIN.fullmatch(name))
    return sorted(names, key=lambda name: (len(name), name))


def _listed(store: Store, shard: Shard) -> Shard:
    """A folder whose files are to be read in its run."""
    return replace(shard, files=f"{store.url}/{file_list.name_of(shard)}")


def pin(store: Store, shards: Sequence[Shard], extend: bool) -> tuple[list[Shard], list[str]]:
    """The shards of the run, with those it does not have yet written down where that is allowed; and what to say of
    folders that are not what they were.

    Raises ConfigError for a shard that changed since it was pinned, and for a new one without `extend`.
    """
    while True:
        pins = _pins(store)
        there = {shard.id: shard for shard in _read(store, pins)}
        given, notes = _as_pinned(shards, there, extend)
        new = [shard for shard in given if shard.id not in there]
        for shard in given:
            known = there.get(shard.id)
            if known and (known.size, known.etag) != (shard.size, shard.etag):
                raise ConfigError(
                    f"{shard.url}: not the shard this run began with ({known.size} bytes, version {known.etag}; "
                    f"now {shard.size} bytes, version {shard.etag}): use another --output"
                )
        if there and new and not extend:
            raise ConfigError(
                f"{store} was begun without {new[0].url} ({len(new)} such): add --extend, or another --output"
            )
        for shard in new:
            if isinstance(shard.files, bytes):
                store.put_new(file_list.name_of(shard), shard.files)
        if not new or store.put_new(f"{INPUTS}/{len(pins)}.parquet", table.encode_shards(new)):
            # the shards as given know how to open them; others are opened by their pinned URL
            known_now = {**there, **{shard.id: shard for shard in given}}.values()
            return [_listed(store, shard) if is_folder(shard.url) else shard for shard in known_now], notes
        # somebody else was faster, or our own reply was lost: what stands there now decides


def _as_pinned(shards: Sequence[Shard], there: Mapping[str, Shard], extend: bool) -> tuple[list[Shard], list[str]]:
    """The shards as the run may know them: a folder that it has as what it was then, and what came to it since."""
    given: list[Shard] = []
    notes: list[str] = []
    for shard in shards:
        parts = [part for part in there.values() if part.url == shard.url]
        if not parts or not is_folder(shard.url) or parts[0].etag == shard.etag:
            given.append(shard)
            continue
        given += [replace(part, source=shard.source) for part in parts]
        gone, new = file_list.compare(parts, shard)
        if new.size and extend:
            id_ = shard_id(shard.url, len(parts))
            given.append(replace(shard, id=id_, size=new.size, etag=new.digest, files=new.data))
        elif new.size:
            notes.append(f"{shard.url}: files came to it since it was pinned; --extend adds them")
        if gone:
            notes.append(f"{shard.url}: {gone[0]} is gone since it was pinned ({len(gone)} such); its row will say so")
    return given, notes


def read_run(store: Store) -> Run:
    """The run that lies here. Raises FileNotFoundError, ConfigError where its run.json is of no use."""
    try:
        return Run.from_json(store.get(RUN))
    except ValueError as error:
        raise ConfigError(f"{store}/{RUN}: {error}") from error


def begun(output: str) -> Run | None:
    """The run on an output; None where none is begun.

    Raises ConfigError where there is something else than a run, or the output cannot be read.
    """
    try:
        return read_run(Store(output))
    except FileNotFoundError:
        return None
    except StorageError as error:
        raise ConfigError(str(error)) from error


def reader_of(output: str) -> int:
    """By whose rules the samples of the run on an output are told; the newest where none is begun. See `begun`."""
    run = begun(output)
    return run.reader if run else READER


def join(store: Store, run: Run, any_window: bool) -> Run:
    """Begin a run or find it begun. Raises ConfigError where what is there was configured otherwise.

    run.json is the probe too: put twice, the second must lose, or the store is used as one that ignores the condition.
    """
    try:
        there = read_run(store)
    except FileNotFoundError:
        there = run if store.put_new(RUN, run.to_json()) else read_run(store)
    _check_same(store, there, replace(run, window=there.window) if any_window else run)
    if store.put_new(RUN, there.to_json()):
        store.create_only = False
    return there


def _check_same(store: Store, there: Run, mine: Run) -> None:
    """Raises ConfigError where labels of `mine`, which this version made, do not belong beside those of `there`."""
    refusal = there.refusal(mine)
    if not refusal and there.fingerprint == mine.fingerprint:
        return
    theirs, ours = there.labels_version, LABELS_VERSION[mine.config.mode]
    if theirs is None:
        refusal = there.refusal(mine, f"{RUN} {EDITED}")
    if refusal:
        raise ConfigError(f"{store} {refusal}")
    if theirs != ours:  # else a number is only written in another way, such as 0 for 0.0
        maker = there.made_with.get("diffseg", "0.1.0")  # the one version that did not say so
        raise ConfigError(
            f"{store}: this version of diffseg labels differently (labels version {ours}, the run has {theirs}): "
            f"use another --output, or diffseg {maker}"
        )


def check_room(store: Store) -> None:
    """Raises ConfigError where a local disk is nearly full."""
    room = store.free_space()
    if room is not None and room < ROOM:
        raise ConfigError(f"{store}: only {room >> 20} MB are left on this disk")
