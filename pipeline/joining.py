"""How a driver begins a run or joins the one that is there: room, configuration, pinned inputs."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline import table
from pipeline.errors import ConfigError
from pipeline.records import Shard
from pipeline.run import Run
from pipeline.store import Store

RUN, INPUTS = "run.json", "inputs"
ROOM = 64 << 20  # bytes an output must have left for a run to begin


def pinned(store: Store) -> list[Shard]:
    """The inputs of a run, in the order they were added. Raises ConfigError where their list is damaged."""
    shards: list[Shard] = []
    for name in sorted((name for name, _ in store.list(f"{INPUTS}/")), key=lambda name: (len(name), name)):
        try:
            shards += table.decode_shards(store.get(name))
        except ValueError as error:
            raise ConfigError(f"{store}/{name}: {error}") from error
    return shards


def pin(store: Store, shards: Sequence[Shard], extend: bool) -> list[Shard]:
    """The shards of the run, with those it does not have yet written down where that is allowed.

    Raises ConfigError for a shard that changed since it was pinned, and for a new one without `extend`.
    """
    while True:
        there = {shard.id: shard for shard in pinned(store)}
        new = [shard for shard in shards if shard.id not in there]
        for shard in shards:
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
        number = sum(1 for _ in store.list(f"{INPUTS}/"))
        if not new or store.put_new(f"{INPUTS}/{number}.parquet", table.encode_shards(new)):
            # the shards as given know how to open them; others are opened by their pinned URL
            return list({**there, **{shard.id: shard for shard in shards}}.values())
        # somebody else was faster, or our own reply was lost: what stands there now decides


def join(store: Store, run: Run, any_window: bool) -> Run:
    """Begin a run or find it begun. Raises ConfigError where what is there was configured otherwise.

    run.json is the probe too: put twice, the second must lose, or the store is used as one that ignores the condition.
    """
    try:
        there = Run.from_json(store.get(RUN))
    except FileNotFoundError:
        there = run if store.put_new(RUN, run.to_json()) else Run.from_json(store.get(RUN))
    except ValueError as error:
        raise ConfigError(f"{store}/{RUN}: {error}") from error
    if differences := there.differences(replace(run, window=there.window) if any_window else run):
        raise ConfigError(f"{store} holds another run ({'; '.join(differences)}): use another --output")
    if store.put_new(RUN, there.to_json()):
        store.create_only = False
    return there


def check_room(store: Store) -> None:
    """Raises ConfigError where a local disk is nearly full."""
    room = store.room()
    if room is not None and room < ROOM:
        raise ConfigError(f"{store}: only {room >> 20} MB are left on this disk")
