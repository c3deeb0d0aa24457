"""Commits: windows, end records and failures of a run, each put on storage once, however many workers try."""

import json
import platform
import uuid
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from pipeline import documents, table
from pipeline.errors import CommitConflict, StorageError, Unhandled
from pipeline.logs.text import redacted
from pipeline.messages import Receipt, ShardTask
from pipeline.records import OK, LabelRecord, Shard
from pipeline.run.layout import ShardState, end_name, list_states, window_name, window_stem
from pipeline.run.spec import Run
from pipeline.storage.object_store import Store
from pipeline.table.window_metadata import WindowMetadata, digest_of


@dataclass(frozen=True, slots=True)
class End:
    """The end record of a shard: it was read to its last byte."""

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
    """What is kept of a shard that was given up, of a worker that an error ended, or of a sample that kills workers.

    kind: the class of the error; traceback: the end of it. Both are empty where a record has none.
    """

    error: str
    kind: str = ""
    traceback: str = ""


def read_end(store: Store, shard: str) -> End | None:
    """The end record of a shard; None where there is none. Raises CommitConflict where it is damaged or another's."""
    name = end_name(shard)
    try:
        end = store.document(End, name)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CommitConflict(f"{store}/{name}: no end record of ours: {error}") from error
    if end.shard != shard:
        raise CommitConflict(f"{store}/{name}: the end record of another shard, {end.shard}")
    return end


def last_failure(store: Store, shard: str) -> str | None:
    """The error recorded last of a shard that was given up; None where there is none."""
    names = [name for name, _ in store.list(f"failures/{shard}.") if name.endswith(".json")]
    for name in reversed(names):
        with suppress(ValueError):  # failure records are for people: a damaged one is passed over
            return store.document(Failure, name).error
    return None


class RunWriter:
    """Puts windows, end records and failures of a run on storage."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run
        self.attempt = uuid.uuid4().hex  # names the commits of this process

    def commit(self, task: ShardTask, window: int, records: Sequence[LabelRecord], end: int, seconds: float) -> Receipt:
        """Put a whole window on storage, once.

        end: bytes of the shard up to the window's last sample. seconds: of labelling it. Raises CommitConflict where
        another window has its name, Unhandled where the rows cannot be stored, StorageError.
        """
        name = window_name(task.shard.id, window, task.revision)
        failed = Counter(record.status for record in records if record.status != OK)
        metadata = WindowMetadata(
            fingerprint=self.run.fingerprint,
            shard=task.shard.id,
            url=task.shard.url,
            size=task.shard.size,
            etag=task.shard.etag,
            window=window,
            first_index=window * self.run.window,
            rows=len(records),
            failed=dict(failed),
            attempt=self.attempt,
            digest=digest_of(records),
            model=self.run.model,
            revision=self.run.revision,
            made_with=self._made_with,
        )
        try:
            data = table.encode_window(records, metadata)
        except (ValueError, OverflowError) as error:
            raise Unhandled(f"{self.store}/{name}: {error}") from error
        won = self.store.put_new(name, data)
        return Receipt(
            shard=task.shard.id,
            window=window,
            rows=len(records),
            failed=tuple(sorted(failed.items())),
            end=end,
            seconds=seconds,
            wasted=not won and not self._is_own(name, metadata),
            example=next((f"{r.key}: {r.error}"[:200] for r in records if r.status != OK), None),
        )

    def _is_own(self, name: str, metadata: WindowMetadata) -> bool:
        """Whether the existing object is this attempt's own, whose reply was lost; False where it is another's equal.

        Raises CommitConflict where it holds something else.
        """
        try:
            with self.store.reader(name) as stream:
                existing = table.read_window_metadata(stream)
        except ValueError as error:
            raise CommitConflict(f"{self.store}/{name}: {error}") from error
        except FileNotFoundError as error:
            raise StorageError(f"{self.store}/{name}: refused as there already, yet not there to read") from error
        if existing.identity != metadata.identity:
            raise CommitConflict(f"{self.store}/{name}: holds {existing.identity}, expected {metadata.identity}")
        return existing.attempt == metadata.attempt

    def commit_end(self, shard: Shard, windows: int, rows: int, own_windows: Container[int]) -> bool:
        """Record that a shard was read to its end, if all its windows are committed; False where some are not yet.

        own_windows: committed by the caller itself, so that they need not be listed.
        """
        others = [window for window in range(windows) if window not in own_windows]
        committed = list_states(self.store, f"{shard.id}.").get(shard.id, ShardState()).windows if others else {}
        if any(window not in committed for window in others):
            return False
        end = End(shard.id, windows, rows, shard.size, shard.etag)
        data = documents.to_json(end)
        if not self.store.put_new(end_name(shard.id), data) and read_end(self.store, shard.id) != end:
            raise CommitConflict(f"{self.store}/{end_name(shard.id)}: says something else than {end}")
        return True

    def commit_extra(self, task: ShardTask, window: int, data: bytes) -> None:
        """Put the WebDataset tar of a window on storage; called before `commit`, which counts."""
        self.store.put_new(f"webdataset/{window_stem(task.shard.id, window, task.revision)}.tar", data)

    def record_failure(self, name: str, fields: Mapping[str, Any]) -> None:
        """Keep a failure under failures/, for people to read."""
        told = {key: redacted(value) if isinstance(value, str) else value for key, value in fields.items()}
        self.store.put_new(f"failures/{name}.{uuid.uuid4().hex[:8]}.json", json.dumps(told, indent=2).encode())

    @cached_property
    def _made_with(self) -> dict[str, str]:
        names = ("diffseg", "torch", "diffusers", "pillow", "ray")
        return {name: version(name) for name in names} | {
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
