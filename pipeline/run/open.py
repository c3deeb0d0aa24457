"""How a driver begins a run or joins the one that exists: free space, configuration, pinned inputs."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count

from diffseg.config import LABELS_VERSION
from pipeline import table
from pipeline.errors import ConfigError, Stopped, StorageError
from pipeline.inputs.folder import file_list
from pipeline.inputs.folder.reading import is_folder
from pipeline.inputs.shards import shard_id
from pipeline.records import READER, Shard
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store

RUN, INPUTS = "run.json", "inputs"
PIN = re.compile(rf"{INPUTS}/\d+\.parquet")
EDITED = "was edited: its fingerprint does not follow from the configuration that stands there"
ROOM = 64 << 20  # bytes that an output's disk must have free for a run to begin
logger = logging.getLogger(__name__)


def free_pin(names: Collection[str]) -> str:
    """The name of the next list of pinned shards: the first that is free, since one may be gone."""
    return next(name for name in (f"{INPUTS}/{n}.parquet" for n in count()) if name not in names)


def pinned_shards(store: Store, names: Sequence[str] | None = None) -> Iterator[Shard]:
    """The shards of a run, in the order they were pinned. Raises ConfigError where their list is damaged.

    names: of the lists; None: all of them.
    """
    seen = set[int]()  # hashes: there may be millions
    for name in pin_names(store) if names is None else names:
        try:
            for shard in table.decode_shards(store.get(name)):
                if hash(shard.id) in seen:
                    raise ValueError(f"{shard.id} is pinned twice")
                seen.add(hash(shard.id))
                yield _listed(store, shard) if is_folder(shard.url) else shard
        except ValueError as error:
            raise ConfigError(f"{store}/{name}: {error}") from error


def pin_names(store: Store) -> list[str]:
    """`inputs/<n>.parquet`, in order of n."""
    names = (name for name, _ in store.list(f"{INPUTS}/") if PIN.fullmatch(name))
    return sorted(names, key=lambda name: (len(name), name))


def _listed(store: Store, shard: Shard) -> Shard:
    """A folder whose list of files is read from the run."""
    return replace(shard, files=f"{store.url}/{file_list.name_of(shard)}")


def pin_shards(store: Store, shards: Sequence[Shard], extend: bool) -> tuple[list[Shard], list[str]]:
    """Pin the shards that a run does not have yet, where `extend` allows it.

    Returns all shards of the run, and a note for each folder that has changed since it was pinned.
    Raises ConfigError for a shard that changed since it was pinned, and for a new one without `extend`.
    """
    while True:
        names = pin_names(store)
        pinned = {shard.id: shard for shard in pinned_shards(store, names)}
        given, notes = _as_pinned(shards, pinned, extend)
        new = [shard for shard in given if shard.id not in pinned]
        for shard in given:
            known = pinned.get(shard.id)
            if known and (known.size, known.etag) != (shard.size, shard.etag):
                raise ConfigError(
                    f"{shard.url}: not the shard this run began with ({known.size} bytes, version {known.etag}; "
                    f"now {shard.size} bytes, version {shard.etag}): use another --output"
                )
        whole = free_pin(names) == f"{INPUTS}/{len(names)}.parquet"  # else a list is gone, and is made again
        if pinned and new and whole and not extend:
            raise ConfigError(
                f"{store} was begun without {new[0].url} ({len(new)} such): add --extend, or another --output"
            )
        for shard in new:
            if isinstance(shard.files, bytes):
                store.put_new(file_list.name_of(shard), shard.files)
        if not new or store.put_new(free_pin(names), table.encode_shards(new)):
            # the shards as given know how to open them; others are opened by their pinned URL
            shards_now = {**pinned, **{shard.id: shard for shard in given}}.values()
            return [_listed(store, shard) if is_folder(shard.url) else shard for shard in shards_now], notes
        # another driver was faster, or the reply to this one was lost: what is on storage now decides


def _as_pinned(shards: Sequence[Shard], pinned: Mapping[str, Shard], extend: bool) -> tuple[list[Shard], list[str]]:
    """The shards as the run has them: a folder that is pinned with the files it had then, its new files apart."""
    given: list[Shard] = []
    notes: list[str] = []
    for shard in shards:
        parts = [part for part in pinned.values() if part.url == shard.url]
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
    """The run of this store. Raises FileNotFoundError where there is none, ConfigError where run.json is invalid."""
    try:
        return _parsed(store, store.get(RUN))
    except ValueError as error:
        raise ConfigError(f"{store}/{RUN}: {error}") from error


def _parsed(store: Store, data: bytes) -> Run:
    try:
        return Run.from_json(data)
    except ValueError as error:
        raise ConfigError(f"{store}/{RUN}: {error}") from error


def keep_run(store: Store, run: Run) -> bytes:
    """The bytes of a begun run's run.json, put back where it is gone. Raises Stopped where it is another."""
    try:
        data = store.get(RUN)
    except FileNotFoundError:
        store.put_new(RUN, data := run.to_json())
        logger.warning("%s/%s was gone, and is put back", store, RUN)
    with suppress(ValueError):
        if Run.from_json(data) == run:
            return data
    raise Stopped(f"{store}/{RUN} was changed in mid-run: put it back, or remove it and label again")


def existing_run(output: str) -> Run | None:
    """The run of an output folder; None where none was begun.

    Raises ConfigError where the folder holds something else, or cannot be read.
    """
    try:
        return read_run(Store(output))
    except FileNotFoundError:
        return None
    except StorageError as error:
        raise ConfigError(str(error)) from error


def reader_of(output: str) -> int:
    """The version of the reader's rules that the run of an output folder uses; the newest where none was begun.

    Raises ConfigError, see `existing_run`.
    """
    run = existing_run(output)
    return run.reader if run else READER


def begin_or_join(store: Store, run: Run, any_window: bool) -> Run:
    """Begin a run, or return the one that exists. Raises ConfigError where that one was configured otherwise.

    run.json also probes the store: of two puts the second must fail; where it does not, the store ignores the
    condition, and `create_only` is switched off.
    """
    try:
        data = store.get(RUN)
    except FileNotFoundError:
        data = run.to_json()
        data = data if store.put_new(RUN, data) else store.get(RUN)
    existing = _parsed(store, data)
    _check_same(store, existing, replace(run, window=existing.window) if any_window else run)
    store.probe(RUN, data)
    return existing


def _check_same(store: Store, existing: Run, wanted: Run) -> None:
    """Raises ConfigError where labels of `wanted`, a run of this version, do not belong beside those of `existing`."""
    refusal = existing.refusal(wanted)
    if not refusal and existing.fingerprint == wanted.fingerprint:
        return
    version, own_version = existing.labels_version, LABELS_VERSION[wanted.segment.mode]
    if version is None:
        refusal = existing.refusal(wanted, f"{RUN} {EDITED}")
    if refusal:
        raise ConfigError(f"{store} {refusal}")
    if version != own_version:  # equal versions: a number is only written in another way, such as 0 for 0.0
        maker = existing.made_with.get("diffseg", "0.1.0")  # the one version that did not record itself
        raise ConfigError(
            f"{store}: this version of diffseg labels differently (labels version {own_version}, the run has "
            f"{version}): use another --output, or diffseg {maker}"
        )
