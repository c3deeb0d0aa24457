"""What the driver keeps of failures, for people: lines in its log, and records in the run's `failures/`."""

import logging

from pipeline.errors import AlreadyCommitted, Drained, PipelineError
from pipeline.logs.context import bound
from pipeline.messages import ShardFailure
from pipeline.run.ledger import Ledger

MOST_ENDS = 20  # records of workers that ended by an error: a fault of ours ends every worker
ROUTINE = (Drained.kind, AlreadyCommitted.kind)
logger = logging.getLogger(__name__)


class FailureLog:
    """The failures of one run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ends: set[str] = set()  # tracebacks that are on storage
        self.last_end = ""  # the error that ended a worker last

    def failed(self, failure: ShardFailure) -> None:
        """A task came back unfinished. Where an error ended its worker, the first record of each traceback is kept."""
        task = failure.task
        last = "" if task.last_window is None else task.last_window
        with bound(shard=task.shard.id, window=f"{task.first_window}-{last}"):
            level = logging.INFO if failure.kind in ROUTINE else logging.WARNING
            logger.log(level, "attempt %d failed: %s: %s", task.attempt, failure.kind, failure.error)
        if not (failure.traceback and failure.heartbeats):
            return
        self.last_end = failure.error
        if failure.traceback in self._ends or len(self._ends) >= MOST_ENDS:
            return
        self._ends.add(failure.traceback)
        try:
            self._record("workers", failure, in_hand=[f"{h.shard} {h.samples}" for h in failure.heartbeats])
        except PipelineError as error:  # a record lost is no reason to stop a run
            logger.warning("no record of it on storage: %s", error)

    def given_up(self, failure: ShardFailure) -> None:
        """A shard will not be read to its end. Raises StorageError."""
        with bound(shard=failure.task.shard.id):
            logger.error("given up: %s: %s", failure.kind, failure.error)
        self._record(failure.task.shard.id, failure)

    def _record(self, name: str, failure: ShardFailure, **more: object) -> None:
        shard = failure.task.shard
        fields = {"shard": shard.id, "url": shard.url, "kind": failure.kind, "error": failure.error}
        known = {"offset": failure.offset, "attempts": failure.task.attempt, **more}
        trace = {"traceback": failure.traceback} if failure.traceback else {}
        self._ledger.writer.record_failure(name, fields | known | trace)
