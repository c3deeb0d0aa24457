"""The state of a run: its output folder, and nothing beside it.

`run.json` says what is being made, `inputs/` from what, `labels/` holds one Parquet object a window and one end record
a shard. What a listing does not show is not done; no clock and no memory of a process decides.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import CommitConflict, ConfigError, StorageError
from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.run.commit import End, RunWriter, last_failure, read_end
from pipeline.run.compacted import CompactedIndex, RowRange, read_compacted
from pipeline.run.layout import ShardState, WindowObject, beginnings, end_name, gaps, list_states, window_name
from pipeline.run.open import RUN, begin_or_join, check_room, pin_shards, pinned_shards, read_run
from pipeline.run.shard_index import ShardIndex
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store
from pipeline.table.filter import Condition
from pipeline.table.window_metadata import WindowMetadata

LISTINGS = 16  # pages of a store's listing come one after another: large runs are listed in parts, side by side
SHARDS_A_LISTING = 8  # at least
READERS = 32  # end records and footers read side by side: the work is waiting for storage
logger = logging.getLogger(__name__)


class Ledger:
    """One run on storage. writer: what adds to it. notes: what a driver that joined it tells its user."""

    def __init__(self, store: Store, run: Run, shards: Iterable[Shard], notes: Sequence[str] = ()) -> None:
        self.store, self.run, self.writer = store, run, RunWriter(store, run)
        self.shards = ShardIndex(shards, run.reader)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        return str(self.store)

    @classmethod
    def open(cls, url: str, *, create_only: bool = True) -> "Ledger":
        """A run that exists. create_only: see Store. Raises ConfigError where there is none."""
        store = Store(url, create_only=create_only)
        try:
            run = read_run(store)
        except FileNotFoundError as error:
            raise ConfigError(f"{store}: no run here (there is no {RUN})") from error
        return cls(store, run, pinned_shards(store))

    @classmethod
    def start(
        cls, url: str, run: Run, shards: Sequence[Shard], *, extend: bool = False, any_window: bool = False
    ) -> "Ledger":
        """Begin a run, or join the one that is there.

        extend: shards that the run does not have yet are added to it. any_window: the caller takes the window size
        of the run that is there. Raises ConfigError where the run there was configured otherwise, has other shards, or
        cannot be written.
        """
        store = Store(url)
        try:
            check_room(store)
            joined = begin_or_join(store, run, any_window)
            pinned, notes = pin_shards(store, shards, extend)
            store.sweep()
        except StorageError as error:
            raise ConfigError(str(error)) from error
        return cls(store, joined, pinned, notes)

    def states(self, shard: str = "") -> dict[str, ShardState]:
        """What is committed, by shard id. shard: only this one."""
        parts = min(LISTINGS, len(self.shards) // SHARDS_A_LISTING)
        if shard or parts < 2 or not self.store.lists_by_prefix:
            return list_states(self.store, f"{shard}." if shard else "")
        found: dict[str, ShardState] = {}

        def of(prefix: str) -> dict[str, ShardState]:
            return list_states(self.store, prefix)

        for part in prefetch_map(of, beginnings(self.shards, parts), depth=parts, threads=parts):
            found |= part
        return found

    def unfinished(self, states: dict[str, ShardState] | None = None) -> Iterator[ShardTask]:
        """The windows that a listing shows to be missing, as tasks: runs of neighbours, the last of a shard open to its
        end.

        states: of a listing made before (None: list now); emptied on the way, for it is as large as the run. Windows
        that vanished from the very end of a finished shard show in `missing` alone.
        """
        states = self.states() if states is None else states
        for shard in self.shards.values():
            yield from gaps(shard, states.pop(shard.id, ShardState()))

    def missing(self) -> list[ShardTask]:
        """The windows that are not there, as tasks; every end record is read too, and held against what is there."""
        states = self.states()

        def of(shard: Shard) -> list[ShardTask]:
            return self._gaps(shard, states.get(shard.id, ShardState()))

        found = prefetch_map(of, self.shards.values(), depth=READERS, threads=READERS)
        return [task for tasks in found for task in tasks]

    def end(self, shard: str) -> End | None:
        """The end record of a shard, by its id; None where there is none. Raises CommitConflict, see `read_end`."""
        return read_end(self.store, shard)

    def last_failure(self, shard: str) -> str | None:
        """The error recorded last of a shard that was given up, by its id; None where there is none."""
        return last_failure(self.store, shard)

    def has(self, task: ShardTask, window: int) -> bool:
        """Whether a window of a task is there already."""
        return self.store.exists(window_name(task.shard.id, window, task.revision))

    def ended(self, shard: Shard) -> bool:
        """Whether a shard's end record is there."""
        return self.store.exists(end_name(shard.id))

    def missing_of(self, shard: Shard) -> list[ShardTask]:
        """The same for one shard, from a listing of its own."""
        return self._gaps(shard, self.states(shard.id).get(shard.id, ShardState()))

    def left_of(self, task: ShardTask) -> list[ShardTask]:
        """What of a task is not on storage yet."""
        state = self.states(task.shard.id).get(task.shard.id, ShardState())
        done = {n: window for n, window in state.windows.items() if window.revision >= task.revision}
        left = []
        for gap in self._gaps(task.shard, ShardState(done, state.ended)):
            first = max(gap.first_window, task.first_window)
            last = min((end for end in (gap.last_window, task.last_window) if end is not None), default=None)
            if last is None or first <= last:
                left.append(replace(task, first_window=first, last_window=last))
        return left

    def failed(self, states: Mapping[str, ShardState] | None = None) -> list[ShardTask]:
        """Windows with rows that have no labels, as tasks that label them again, as their next revision.

        states: of a listing made before (None: list now).
        """

        def of(window: WindowObject) -> list[ShardTask]:
            try:
                failed = self.window_metadata(window).failed
            except ValueError as error:  # no window of ours: nothing can be made in its place, and the audit names it
                logger.warning("not labelled again: %s", error)
                return []
            if not failed:
                return []
            number, revision = window.window, window.revision + 1
            return [ShardTask(self.shards[window.shard], number, number, revision)]

        return [
            task for tasks in prefetch_map(of, self.windows(states), depth=READERS, threads=READERS) for task in tasks
        ]

    def _gaps(self, shard: Shard, state: ShardState) -> list[ShardTask]:
        if not state.ended:
            return gaps(shard, state)
        try:
            end = self.end(shard.id)
        except CommitConflict as error:  # no end record of ours is none; the audit names it
            logger.warning("taken for no end record: %s", error)
            end = None
        return gaps(shard, state, end.windows) if end else gaps(shard, replace(state, ended=False))

    def windows(self, states: Mapping[str, ShardState] | None = None) -> Iterator[WindowObject]:
        """Every committed window of this run, in order of shard and window, the latest revision of each.

        states: of a listing made before (None: list now).
        """
        states = self.states() if states is None else states
        for shard in self.shards:
            state = states.get(shard, ShardState())
            yield from (state.windows[window] for window in sorted(state.windows))

    def rows(
        self,
        columns: Sequence[str] | None = None,
        *,
        windows: Iterable[WindowObject] | None = None,
        filter: Condition | None = None,
        stored: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Committed rows as dicts, in order of shard and index, from compacted files where those hold them.

        Every reader of rows calls this function. columns: only these (None: all). windows: only of these (None: of
        all). filter: only rows that it is true of. stored: see `table.read_rows`. Raises ConfigError where an object
        is damaged.
        """
        for part in self._compacted.ranges(self.windows() if windows is None else windows):
            try:
                with self.store.reader(part.name, part.size) as stream:
                    yield from table.read_rows(
                        stream,
                        columns,
                        first=part.first,
                        rows=part.rows,
                        filter=filter,
                        window=part.window,
                        stored=stored,
                    )
            except ValueError as error:
                raise ConfigError(f"{self}/{part.name}: {error}; `diffseg verify --full` finds what is so") from error

    def is_compacted(self, window: WindowObject) -> bool:
        """Whether readers take its rows from a compacted file."""
        return window in self._compacted

    def categories(self, windows: Iterable[WindowObject]) -> set[str]:
        """Every category that a segment of these windows has."""

        def of(part: RowRange) -> set[str]:
            with self.store.reader(part.name, part.size) as stream:
                return table.categories(stream)

        parts = {part.name: part for part in self._compacted.ranges(windows)}
        return set[str]().union(*prefetch_map(of, parts.values(), depth=READERS, threads=READERS))

    @cached_property
    def _compacted(self) -> CompactedIndex:
        return CompactedIndex(read_compacted(self.store))

    def window_metadata(self, window: WindowObject) -> WindowMetadata:
        """What a window says of itself. Raises ValueError where it is no window of ours."""
        with self.store.reader(window.name, window.size) as stream:
            try:
                return table.read_window_metadata(stream)
            except ValueError as error:
                raise ValueError(f"{window.name}: {error}") from error
