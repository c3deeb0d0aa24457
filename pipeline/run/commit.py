"""What is added to a run: windows, ends of shards and failures, each put on storage once, whoever tries."""

import json
import platform
import uuid
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from pipeline import documents, table
from pipeline.errors import CommitConflict, StorageError, Unhandled
from pipeline.messages import Receipt, ShardTask
from pipeline.records import OK, LabelRecord, Shard
from pipeline.run.layout import LABELS, ShardState, end_name, read_listing, window_name, window_stem
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store
from pipeline.table.window_metadata import Footer, digest_of


@dataclass(frozen=True, slots=True)
class End:
    """A shard read to its last byte."""

    shard: str
    windows: int
    rows: int
    size: int  # bytes read
    etag: str

    def __post_init__(self) -> None:
        if self.windows < 0 or self.rows < 0:
            raise ValueError(f"{self.windows} windows, {self.rows} rows")


@dataclass(frozen=True, slots=True)
class Failure:
    """What is kept of a shard that was given up, as far as it is read again."""

    error: str


class Commits:
    """The writing side of a run on storage."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run
        self.attempt = uuid.uuid4().hex  # names what this process commits

    def __str__(self) -> str:
        return str(self.store)

    def states(self, shard: str = "") -> dict[str, ShardState]:
        """What is committed, by shard id, from one listing. shard: only this one."""
        return self.listed(f"{shard}." if shard else "")

    def listed(self, beginning: str) -> dict[str, ShardState]:
        """The same of all shards whose names below `labels/` begin so."""
        return read_listing(self.store.list(f"{LABELS}/{beginning}"))

    def end(self, shard: str) -> End | None:
        """A shard's end record; None where it is not there. Raises CommitConflict where it is none of ours."""
        name = end_name(shard)
        try:
            end = documents.from_json(End, self.store.get(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CommitConflict(f"{self}/{name}: no end record of ours: {error}") from error
        if end.shard != shard:
            raise CommitConflict(f"{self}/{name}: the end record of another shard, {end.shard}")
        return end

    def commit(self, task: ShardTask, window: int, records: Sequence[LabelRecord], end: int, seconds: float) -> Receipt:
        """Put a whole window on storage, once.

        Raises CommitConflict where something else than this window stands there, Unhandled, StorageError.
        """
        name = window_name(task.shard.id, window, task.generation)
        failed: dict[str, int] = {}
        for record in records:
            if record.status != OK:
                failed[record.status] = failed.get(record.status, 0) + 1
        footer = Footer(
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
            digest=digest_of(records),
            model=self.run.model,
            revision=self.run.revision,
            made_with=self._made_with,
        )
        try:
            data = table.encode_window(records, footer)
        except (ValueError, OverflowError) as error:
            raise Unhandled(f"{self}/{name}: {error}") from error
        won = self.store.put_new(name, data)
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

    def _is_mine(self, name: str, footer: Footer) -> bool:
        """Whether the object that was there first is our own (its reply was lost) or an equal one."""
        try:
            with self.store.reader(name) as stream:
                there = table.read_footer(stream)
        except ValueError as error:
            raise CommitConflict(f"{self}/{name}: {error}") from error
        except FileNotFoundError as error:
            raise StorageError(f"{self}/{name}: refused as there already, yet not there to read") from error
        if there.identity != footer.identity:
            raise CommitConflict(f"{self}/{name}: holds {there.identity}, expected {footer.identity}")
        return there.attempt == footer.attempt

    def commit_end(self, shard: Shard, windows: int, rows: int, mine: Container[int]) -> bool:
        """Record that a shard was read to its end, if all its windows are there; False where some are not yet.

        mine: windows the caller has committed itself and need not be looked for.
        """
        others = [window for window in range(windows) if window not in mine]
        there = self.states(shard.id).get(shard.id, ShardState()).windows if others else {}
        if any(window not in there for window in others):
            return False
        end = End(shard.id, windows, rows, shard.size, shard.etag)
        data = json.dumps(asdict(end)).encode()
        if not self.store.put_new(end_name(shard.id), data) and self.end(shard.id) != end:
            raise CommitConflict(f"{self}/{end_name(shard.id)}: says something else than {end}")
        return True

    def commit_extra(self, task: ShardTask, window: int, data: bytes) -> None:
        """The WebDataset tar of a window; written before its Parquet, which is the commit."""
        self.store.put_new(f"webdataset/{window_stem(task.shard.id, window, task.generation)}.tar", data)

    def record_failure(self, name: str, said: Mapping[str, Any]) -> None:
        """Keep what went wrong under failures/, for people."""
        self.store.put_new(f"failures/{name}.{uuid.uuid4().hex[:8]}.json", json.dumps(said, indent=2).encode())

    def failure_of(self, shard: str) -> str | None:
        """The last thing recorded of a shard that was given up; None where there is nothing."""
        names = [name for name, _ in self.store.list(f"failures/{shard}.") if name.endswith(".json")]
        for name in reversed(names):
            with suppress(ValueError):  # what lies there is for people: one that is damaged says nothing
                return documents.from_json(Failure, self.store.get(name)).error
        return None

    @cached_property
    def _made_with(self) -> dict[str, str]:
        names = ("diffseg", "torch", "diffusers", "pillow", "ray")
        return {name: version(name) for name in names} | {
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
