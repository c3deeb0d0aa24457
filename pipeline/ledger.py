"""The state of a run: its output folder, and nothing beside it.

`run.json` says what is being made, `inputs/` from what, `labels/` holds one Parquet object a window and one end record
a shard. What a listing does not show is not done; no clock and no memory of a process decides.
"""

import json
import platform
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from pipeline import table
from pipeline.errors import CommitConflict, ConfigError
from pipeline.overlap import map_ahead
from pipeline.records import OK, LabelRecord, Receipt, Shard, ShardTask
from pipeline.run import Run
from pipeline.store import Store

THREADS = 16  # small reads side by side: the work is waiting for storage
RUN, INPUTS, LABELS = "run.json", "inputs", "labels"


@dataclass(frozen=True, slots=True)
class WindowObject:
    """A committed window as a listing shows it. generation: 0, or n for its n-th retry."""

    shard: str
    window: int
    generation: int
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class End:
    """A shard read to its last byte."""

    shard: str
    windows: int
    rows: int
    size: int  # bytes read
    etag: str


@dataclass(slots=True)
class ShardState:
    """What a listing shows of one shard."""

    windows: dict[int, WindowObject] = field(default_factory=dict)  # the highest generation of each
    ended: bool = False


class Ledger:
    """One run on storage."""

    def __init__(self, store: Store, run: Run, shards: Sequence[Shard]) -> None:
        self.store, self.run = store, run
        self.shards = {shard.id: shard for shard in shards}
        self.attempt = uuid.uuid4().hex  # names what this process commits

    def __str__(self) -> str:
        return str(self.store)

    @classmethod
    def open(cls, url: str) -> "Ledger":
        """A run that exists. Raises ConfigError where there is none."""
        store = Store(url)
        try:
            run = Run.from_json(store.get(RUN))
        except FileNotFoundError as error:
            raise ConfigError(f"{store}: no run here (there is no {RUN})") from error
        except ValueError as error:
            raise ConfigError(f"{store}/{RUN}: {error}") from error
        return cls(store, run, _pinned(store))

    @classmethod
    def start(
        cls, url: str, run: Run, shards: Sequence[Shard], *, extend: bool = False, any_window: bool = False
    ) -> "Ledger":
        """Begin a run, or join the one that is there.

        extend: shards that the run does not have yet are added to it. any_window: the caller takes the window size
        of the run that is there. Raises ConfigError where the run there was
        configured otherwise, has other shards, or cannot be written.
        """
        store = Store(url)
        there = _join(store, run, any_window)
        pinned = {shard.id: shard for shard in _pinned(store)}
        given = {shard.id: shard for shard in shards}
        new = [shard for shard in shards if shard.id not in pinned]
        if pinned and new and not extend:
            raise ConfigError(
                f"{store} was begun without {new[0].url} ({len(new)} such): add --extend, or another --output"
            )
        for shard in shards:
            pin = pinned.get(shard.id)
            if pin and (pin.size, pin.etag) != (shard.size, shard.etag):
                raise ConfigError(
                    f"{shard.url}: not the shard this run began with ({pin.size} bytes, version {pin.etag}; "
                    f"now {shard.size} bytes, version {shard.etag}): use another --output"
                )
        if new:
            generation = sum(1 for _ in store.list(f"{INPUTS}/"))
            if not store.put_new(f"{INPUTS}/{generation}.parquet", table.encode_shards(new)):
                pinned = {shard.id: shard for shard in _pinned(store)}
                if any(shard.id not in pinned for shard in new):
                    raise ConfigError(f"{store}: another driver began it with other shards")
        opened = {**pinned, **given}  # the shards as given know how to open them; others are opened by their pinned URL
        return cls(store, there, list(opened.values()))

    # -- what is there ----------------------------------------------------------------------------------------------

    def states(self, shard: str = "") -> dict[str, ShardState]:
        """What is committed, by shard id, from one listing. shard: only this one."""
        found: dict[str, ShardState] = {}
        for name, size in self.store.list(f"{LABELS}/{shard}{'.' if shard else ''}"):
            owner, _, rest = name.removeprefix(f"{LABELS}/").partition(".")
            state = found.setdefault(owner, ShardState())
            if rest == "end.json":
                state.ended = True
            elif entry := _window_object(owner, rest, name, size):
                best = state.windows.get(entry.window)
                if best is None or best.generation < entry.generation:
                    state.windows[entry.window] = entry
        return found

    def missing(self) -> list[ShardTask]:
        """The windows that are not there, as tasks: runs of neighbours, the last of a shard open to its end."""
        states = self.states()
        return [task for shard in self.shards.values() for task in gaps(shard, states.get(shard.id, ShardState()))]

    def lost(self) -> list[ShardTask]:
        """Windows that end records count and no listing shows: labelled once, and gone since. A small read a shard."""
        states = self.states()
        ended = [shard for shard in self.shards.values() if states.get(shard.id, ShardState()).ended]
        ends = map_ahead(lambda shard: self.end(shard.id), ended, depth=THREADS, threads=THREADS)
        return [
            ShardTask(shard, window, window)
            for shard, end in zip(ended, ends, strict=True)
            for window in range(end.windows if end else 0)
            if window not in states[shard.id].windows
        ]

    def missing_of(self, shard: Shard) -> list[ShardTask]:
        """The same for one shard, from a listing of its own."""
        return gaps(shard, self.states(shard.id).get(shard.id, ShardState()))

    def windows(self) -> Iterator[WindowObject]:
        """Every committed window of this run, in order of shard and window, the latest generation of each.

        The one place that decides which object holds a window's rows.
        """
        states = self.states()
        for shard in self.shards:
            state = states.get(shard, ShardState())
            yield from (state.windows[window] for window in sorted(state.windows))

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every committed row as a dict, in order of shard and index. columns: only these (None: all)."""
        for window in self.windows():
            with self.store.reader(window.name, window.size) as stream:
                yield from table.read_rows(stream, columns)

    def footer(self, window: WindowObject) -> table.Footer:
        """What a window says of itself. Raises ValueError where it is no window of ours."""
        with self.store.reader(window.name, window.size) as stream:
            try:
                return table.read_footer(stream)
            except ValueError as error:
                raise ValueError(f"{window.name}: {error}") from error

    def end(self, shard: str) -> End | None:
        """A shard's end record; None where it is not there."""
        try:
            return End(**json.loads(self.store.get(_end_name(shard))))
        except FileNotFoundError:
            return None

    # -- what is added ----------------------------------------------------------------------------------------------

    def commit(self, task: ShardTask, window: int, records: Sequence[LabelRecord], end: int, seconds: float) -> Receipt:
        """Put a whole window on storage, once.

        Raises CommitConflict where something else than this window stands there, StorageError.
        """
        name = window_name(task.shard.id, window, task.generation)
        failed: dict[str, int] = {}
        for record in records:
            if record.status != OK:
                failed[record.status] = failed.get(record.status, 0) + 1
        footer = table.Footer(
            fingerprint=self.run.fingerprint,
            shard=task.shard.id,
            url=task.shard.url,
            size=task.shard.size,
            etag=task.shard.etag,
            window=window,
            first_index=window * self.run.window,
            rows=len(records),
            failed=failed,
            attempt=self.attempt,
            digest=table.digest_of(records),
            model=self.run.model,
            revision=self.run.revision,
            made_with=self._made_with,
        )
        won = self.store.put_new(name, table.encode_window(records, footer))
        return Receipt(
            shard=task.shard.id,
            window=window,
            rows=len(records),
            failed=tuple(sorted(failed.items())),
            end=end,
            seconds=seconds,
            wasted=not won and not self._is_mine(name, footer),
            example=next((f"{r.key}: {r.error}"[:200] for r in records if r.status != OK), None),
        )

    def _is_mine(self, name: str, footer: table.Footer) -> bool:
        """Whether the object that was there first is our own (its reply was lost) or an equal one."""
        with self.store.reader(name) as stream:
            try:
                there = table.read_footer(stream)
            except ValueError as error:
                raise CommitConflict(f"{self}/{name}: {error}") from error
        if there.identity != footer.identity:
            raise CommitConflict(f"{self}/{name}: holds {there.identity}, expected {footer.identity}")
        return there.attempt == footer.attempt

    def commit_end(self, shard: Shard, windows: int, rows: int, mine: Container[int]) -> bool:
        """Record that a shard was read to its end, if all its windows are there; False where some are not yet.

        mine: windows the caller has committed itself and need not be looked for.
        """
        others = (window for window in range(windows) if window not in mine)
        if not all(self.store.exists(window_name(shard.id, window)) for window in others):
            return False
        end = End(shard.id, windows, rows, shard.size, shard.etag)
        data = json.dumps(asdict(end)).encode()
        if not self.store.put_new(_end_name(shard.id), data) and self.end(shard.id) != end:
            raise CommitConflict(f"{self}/{_end_name(shard.id)}: says something else than {end}")
        return True

    def commit_extra(self, task: ShardTask, window: int, data: bytes) -> None:
        """The WebDataset tar of a window; written before its Parquet, which is the commit."""
        self.store.put_new(f"webdataset/{_stem(task.shard.id, window, task.generation)}.tar", data)

    def record_failure(self, name: str, said: Mapping[str, Any]) -> None:
        """Keep what went wrong under failures/, for people."""
        self.store.put_new(f"failures/{name}.{uuid.uuid4().hex[:8]}.json", json.dumps(said, indent=2).encode())

    @cached_property
    def _made_with(self) -> dict[str, str]:
        names = ("diffseg", "torch", "diffusers", "pillow", "ray")
        return {name: version(name) for name in names} | {
            "machine": platform.machine(),
            "python": platform.python_version(),
        }


def gaps(shard: Shard, state: ShardState) -> list[ShardTask]:
    """The tasks that complete a shard, given what is there."""
    tasks: list[ShardTask] = []
    top = max(state.windows, default=-1)
    first: int | None = None
    for window in range(top + 2):
        if window in state.windows or window > top:
            if first is not None:
                tasks.append(ShardTask(shard, first, window - 1))
                first = None
        elif first is None:
            first = window
    return tasks if state.ended else [*tasks, ShardTask(shard, top + 1, None)]


def window_name(shard: str, window: int, generation: int = 0) -> str:
    """Where a window's rows lie."""
    return f"{LABELS}/{_stem(shard, window, generation)}.parquet"


def _stem(shard: str, window: int, generation: int) -> str:
    return f"{shard}.{window:06d}" + (f".r{generation}" if generation else "")


def _end_name(shard: str) -> str:
    return f"{LABELS}/{shard}.end.json"


def _window_object(shard: str, rest: str, name: str, size: int) -> WindowObject | None:
    number, *more = rest.removesuffix(".parquet").split(".")
    if not rest.endswith(".parquet") or not number.isdigit() or len(more) > 1:
        return None
    generation = more[0].removeprefix("r") if more else "0"
    return WindowObject(shard, int(number), int(generation), name, size) if generation.isdigit() else None


def _pinned(store: Store) -> list[Shard]:
    return [shard for name, _ in store.list(f"{INPUTS}/") for shard in table.decode_shards(store.get(name))]


def _join(store: Store, run: Run, any_window: bool) -> Run:
    """run.json is the probe too: put twice, the second must lose."""
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
