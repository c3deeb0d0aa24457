"""Every error class has a kind of its own, and the schedule decides on each kind."""

import json
import pickle

import pytest

from pipeline.driver.progress import Counters
from pipeline.driver.schedule import CheckStorage, Quarantine, Schedule
from pipeline.errors import (
    AlreadyCommitted,
    CommitConflict,
    ConfigError,
    CorruptShard,
    DeviceMismatch,
    Drained,
    NoWorker,
    PipelineError,
    ShardChanged,
    ShardError,
    Stopped,
    StorageFull,
    WorkerLost,
    WouldRepeat,
)
from pipeline.messages import ShardFailure, ShardTask
from pipeline.records import Shard
from pipeline.run.shard_index import ShardIndex

SHARD = Shard("s", "/data/s.tar", 100, "etag")
QUARANTINED = {
    ShardError,
    CorruptShard,
    ShardChanged,
    CommitConflict,
    ConfigError,
    DeviceMismatch,
    NoWorker,
    WouldRepeat,
    PipelineError,
}


def family(kind: type[PipelineError]) -> list[type[PipelineError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in family(child))]


ERRORS = [error for error in family(PipelineError) if error.__module__ == PipelineError.__module__]


def test_every_error_class_has_a_kind_of_its_own() -> None:
    everywhere = family(PipelineError)
    assert len({error.kind for error in everywhere}) == len(everywhere), "also those defined elsewhere"


def test_kinds_are_called_on_storage_and_in_metrics_as_their_classes_were_in_the_first_version() -> None:
    renamed = {error.__name__: error.kind for error in ERRORS if error.kind != error.__name__}
    assert renamed == {"DeviceMismatch": "Unfit", "AlreadyCommitted": "Overtaken"}
    assert json.dumps({"kind": AlreadyCommitted.kind}) == '{"kind": "Overtaken"}'


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_schedule_decides_on_a_failure_of_every_kind(error: type[PipelineError]) -> None:
    counters = Counters()
    schedule = Schedule(ShardIndex([SHARD]), 4, counters, max_attempts=2)
    schedule.add([ShardTask(SHARD)])
    task = schedule.next(1, 1, 0.0)
    assert task
    failure = ShardFailure(task, error.kind, "a reason", error.retryable)

    if error in (StorageFull, Stopped):
        with pytest.raises(Stopped, match="a reason"):
            schedule.record(failure)
        return
    [action] = schedule.record(failure)

    assert counters.failures == {error.kind: 1}
    if error in QUARANTINED:
        assert action == Quarantine(failure)
    else:
        assert isinstance(action, CheckStorage)
        uncounted = {Drained, AlreadyCommitted, WorkerLost}
        assert action.task.attempt == (1 if error in uncounted else 2)


def test_an_error_that_travels_keeps_what_it_knows() -> None:
    error = pickle.loads(pickle.dumps(CorruptShard("cut off", 512)))
    assert (str(error), error.offset, error.kind) == ("cut off", 512, CorruptShard.kind)
