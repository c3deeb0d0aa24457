"""The state of a run, read from its output folder and from nothing else.

`run.json` specifies the run, `inputs/` its shards, `labels/` holds one Parquet object a window and one end record a
shard. A window that no listing shows is not done: neither a clock nor a process' memory decides.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, Self

from diffseg.cut import Cut
from pipeline import table
from pipeline.concurrency import prefetch_map
from pipeline.errors import CommitConflict, ConfigError, StorageError
from pipeline.messages import ShardTask
from pipeline.records import OK, WITHDRAWN, Category, Shard, digest_of_key
from pipeline.run.commit import End, RunWriter, read_end
from pipeline.run.compacted import CompactedIndex, read_compacted
from pipeline.run.layout import ShardState, WindowObject, end_name, gaps, list_states, prefixes, window_name
from pipeline.run.open import ROOM, RUN, begin_or_join, pin_shards, pinned_shards, read_run
from pipeline.run.shard_index import ShardIndex
from pipeline.run.spec import Run
from pipeline.storage.object_store import LARGE_NOTE, Store
from pipeline.table import cuts
from pipeline.table.filter import Condition, columns_of, holds
from pipeline.table.window_metadata import WindowMetadata

LISTINGS = 16  # a store gives the pages of a listing one by one: large runs are listed in parts, side by side
SHARDS_A_LISTING = 8  # at least
READERS = 32  # end records and window metadata read side by side: the work is waiting for storage
logger = logging.getLogger(__name__)


class OtherRun(ValueError):
    """A window is what its name says, and otherwise not what the run says: either may have been changed."""


class Ledger:
    """One run on storage. writer: what adds to it. notes: what a driver that joined it tells its user.

    cut: at which `rows` gives labels; None: as they were committed. calibration: of their scores, and categories of
    their segments, corrections by people, each NAME/REVISION of a derived table; None: as they were committed.
    categories_table: all categories.
    """

    cut: Cut | None = None
    calibration: str | None = None
    categories: str | None = None
    corrections: str | None = None
    categories_table: tuple[Category, ...] = ()

    def __init__(self, store: Store, run: Run, shards: Iterable[Shard], notes: Sequence[str] = ()) -> None:
        self.store, self.run, self.writer = store, run, RunWriter(store, run)
        self.shards = ShardIndex(shards, run.reader)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        return str(self.store)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.store.url, self.cut)  # on another machine, through its own storage

    @classmethod
    def open(cls, url: str, *, create_only: bool = True, cut: Cut | None = None) -> Self:
        """Open an existing run. create_only: see Store. Raises ConfigError where there is none, or none with trees."""
        store = Store(url, create_only=create_only)
        try:
            run = read_run(store)
        except FileNotFoundError as error:
            raise ConfigError(f"{store}: no run here (there is no {RUN})") from error
        if cut and not run.segment.tree:
            raise ConfigError(f"{store}: a run without trees, to be read as it was labelled: no --cut, no --segments")
        ledger = cls(store, run, pinned_shards(store))
        ledger.cut = Cut(height=run.segment.cut) if cut and cut.auto else cut
        return ledger

    @classmethod
    def start(
        cls, url: str, run: Run, shards: Sequence[Shard], *, extend: bool = False, any_window: bool = False
    ) -> "Ledger":
        """Begin a run, or join the existing one.

        extend: add shards that the run does not have yet. any_window: accept the window size of the existing run.
        Raises ConfigError where that run was configured otherwise, has other shards, or cannot be written.
        """
        store = Store(url)
        try:
            if (room := store.free_space()) is not None and room < ROOM:
                raise ConfigError(f"{store}: only {room >> 20} MB are left on this disk")
            joined = begin_or_join(store, run, any_window)
            pinned, notes = pin_shards(store, shards, extend)
            store.sweep()
        except StorageError as error:
            raise ConfigError(str(error)) from error
        return cls(store, joined, pinned, notes)

    def states(self, shard: str = "") -> dict[str, ShardState]:
        """What is committed, by shard id, from one listing. shard: only of this shard, by its id."""
        parts = min(LISTINGS, len(self.shards) // SHARDS_A_LISTING)
        if shard or parts < 2 or not self.store.lists_by_prefix:
            return list_states(self.store, f"{shard}." if shard else "")
        listings = prefetch_map(
            partial(list_states, self.store), prefixes(self.shards, parts), depth=parts, threads=parts
        )
        return {shard: state for listing in listings for shard, state in listing.items()}

    def unfinished(self, states: dict[str, ShardState] | None = None) -> Iterator[ShardTask]:
        """The windows missing from a listing, as tasks for consecutive windows; the last of a shard is open to its end.

        states: of an earlier listing (None: list now); emptied on the way, for it is as large as the run. A listing
        does not show that the last windows of a finished shard are gone: `missing` does.
        """
        states = self.states() if states is None else states
        for shard in self.shards.values():
            yield from gaps(shard, states.pop(shard.id, ShardState()))

    def missing(self) -> list[ShardTask]:
        """The windows that are not committed, as tasks; reads every end record too, to know a shard's last window."""
        states = self.states()
        both = ((shard, states.get(shard.id, ShardState())) for shard in self.shards.values())
        found = prefetch_map(lambda each: self._gaps(*each), both, depth=READERS, threads=READERS)
        return list(chain.from_iterable(found))

    def end(self, shard: str) -> End | None:
        """The end record of a shard, by its id; None where there is none. Raises CommitConflict, see `read_end`."""
        return read_end(self.store, shard)

    def has(self, task: ShardTask, window: int) -> bool:
        """Whether a window of a task is committed."""
        return self.store.exists(window_name(task.shard.id, window, task.revision))

    def ended(self, shard: Shard) -> bool:
        """Whether a shard has its end record."""
        return self.store.exists(end_name(shard.id))

    def missing_of(self, shard: Shard) -> list[ShardTask]:
        """The windows of a shard that are not committed, as tasks; lists that shard alone."""
        return self._gaps(shard, self.states(shard.id).get(shard.id, ShardState()))

    def left_of(self, task: ShardTask) -> list[ShardTask]:
        """The part of a task that is not committed yet, as tasks; lists its shard alone."""
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
        """The windows that have rows without labels, as tasks for their next revision.

        states: of an earlier listing (None: list now).
        """

        def of(window: WindowObject) -> list[ShardTask]:
            try:
                failed = self.window_metadata(window).failed
            except ValueError as error:  # a foreign or damaged object: `verify` names it
                logger.warning("not labelled again: %s", error)
                return []
            if not failed.keys() - {WITHDRAWN}:
                return []
            number, revision = window.window, window.revision + 1
            return [ShardTask(self.shards[window.shard], number, number, revision)]

        found = prefetch_map(of, self.windows(states), depth=READERS, threads=READERS)
        return list(chain.from_iterable(found))

    def _gaps(self, shard: Shard, state: ShardState) -> list[ShardTask]:
        if not state.ended:
            return gaps(shard, state)
        try:
            end = self.end(shard.id)
        except CommitConflict as error:  # a foreign or damaged end record counts as none: `verify` names it
            logger.warning("taken for no end record: %s", error)
            end = None
        return gaps(shard, state, end.windows) if end else gaps(shard, replace(state, ended=False))

    def windows(self, states: Mapping[str, ShardState] | None = None) -> Iterator[WindowObject]:
        """The latest revision of every committed window, in order of shard and window.

        states: of an earlier listing (None: list now).
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
        uncut: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Committed rows as dicts, in order of shard and index, from compacted files where those hold them.

        Every reader of rows calls this function. columns: only these (None: all). windows: only of these (None: of
        all). filter: only rows that it is true of. stored: see `table.read_rows`; such rows are not cut. uncut: rows
        for `at_cut`, which then gives these columns. Raises ConfigError where an object is damaged.
        """
        if filter and not stored and columns_of(filter) & self.remade:
            asked = columns if columns is None else list({*columns, *columns_of(filter)})
            for row in self.rows(asked, windows=windows, uncut=True):
                if holds(filter, made := self.at_cut(row)):
                    yield row if uncut else {name: made[name] for name in columns or made}
            return
        needed = columns if stored else self.needed(columns)
        added = set() if stored or needed is None or not self.withdrawn else {"key", "status"} - set(needed)
        for part in self._compacted.ranges(self.windows() if windows is None else windows):
            check = partial(self.check, *part.windows[0]) if part.rows is None else None
            try:
                with self.store.reader(part.name, part.size) as stream:
                    rows = table.read_rows(
                        stream,
                        [*needed, *added] if needed is not None else None,
                        first=part.first,
                        rows=part.rows,
                        filter=filter,
                        check=check,
                        places=table.Places(part.windows, self.run.window),
                        stored=stored,
                    )
                    if self.withdrawn and not stored:
                        rows = self._shown(rows, added)
                    yield from rows if stored or uncut else map(self.at_cut, rows)
            except FileNotFoundError as error:
                raise ConfigError(f"{self}/{part.name}: was there when the run was listed, and is gone") from error
            except ValueError as error:
                raise ConfigError(f"{self}/{part.name}: {error}; `diffseg verify --full` finds what is so") from error

    def _shown(self, rows: Iterator[dict[str, Any]], added: Iterable[str]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if not self.is_withdrawn(row["key"], row["status"]):
                for name in added:
                    del row[name]
                yield row

    def needed(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """The columns to read, uncut, for these ones of rows made anew."""
        return cuts.uncut(columns) if self.cut else columns

    @property
    def remade(self) -> frozenset[str]:
        """Columns whose values are not those that were committed: a filter on them is applied to rows made anew."""
        return frozenset(cuts.OF_CUT if self.cut else ())

    def at_cut(self, row: dict[str, Any], cut: Cut | None = None) -> dict[str, Any]:
        """A row that was read uncut, at a cut (None: the ledger's). Raises what `cuts.at_cut` does."""
        cut = cut or self.cut
        return cuts.at_cut(row, cut, split=self.run.segment.split_components) if cut else row

    @cached_property
    def withdrawn(self) -> frozenset[str]:
        """Digests of the keys that were withdrawn, see `pipeline.withdrawal`. Raises ConfigError for damaged ones."""
        found = set[str]()
        for name, _ in self.store.list(f"{WITHDRAWN}/"):
            try:
                found.update(self.store.document(list[str], name, LARGE_NOTE))
            except ValueError as error:  # what was withdrawn is not known: nothing may be shown
                raise ConfigError(f"{self}/{name}: no list of what was withdrawn: {error}") from error
        return frozenset(found)

    def is_withdrawn(self, key: str, status: str = OK) -> bool:
        """Whether a sample may not be shown. status: of its row."""
        return bool(self.withdrawn) and (status == WITHDRAWN or digest_of_key(key) in self.withdrawn)

    def copies_of(self, window: WindowObject) -> tuple[str, ...]:
        """The names of compacted files that a window's rows are read from."""
        return tuple(part.name for part in self._compacted.ranges([window]) if part.name != window.name)

    @cached_property
    def _compacted(self) -> CompactedIndex:
        return CompactedIndex(read_compacted(self.store))

    def check(self, shard: str, window: int, metadata: WindowMetadata) -> None:
        """Raises ValueError where metadata are not of the window that its name and the run say."""
        pin = self.shards.get(shard)
        if pin is None:
            raise ValueError("no such shard among the inputs")
        expected = (pin.id, pin.url, pin.size, pin.etag, window, self.run.fingerprint)
        if metadata.identity != expected:
            named = (metadata.shard, metadata.window) == (shard, window)
            raise (OtherRun if named else ValueError)(f"made from {metadata.identity}, the run says {expected}")
        first, most = window * self.run.window, self.run.window
        if metadata.first_index != first or not 0 < metadata.rows <= most:
            raise OtherRun(f"{metadata.rows} rows from {metadata.first_index}, not {most} from {first}")

    def window_metadata(self, window: WindowObject) -> WindowMetadata:
        """Read the metadata of a window. Raises ValueError where its object is foreign or damaged."""
        with self.store.reader(window.name, window.size) as stream:
            try:
                metadata = table.read_window_metadata(stream)
                self.check(window.shard, window.window, metadata)
                return metadata
            except ValueError as error:
                raise ValueError(f"{window.name}: {error}") from error


def _opened(url: str, cut: Cut | None) -> Ledger:
    return Ledger.open(url, cut=cut)
