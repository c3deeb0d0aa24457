"""Workers in threads, as the driver reaches them: what is ordered is done, and an end is told once."""

from collections.abc import Callable
from time import monotonic

import pytest

from pipeline.driver.pool import LocalPool
from pipeline.errors import PipelineError, RayLost, WorkerLost
from pipeline.messages import EndKind, Orders, ShardTask, TaskDone, WorkerEnd
from pipeline.run.ledger import Ledger
from pipeline.worker.host import Report
from pipeline.worker.worker import Worker

NAME = "worker 0"


def ask_until(pool: LocalPool, wanted: Callable[[Report], object], *tasks: ShardTask) -> Report:
    """The first report of the worker that is as wanted; tasks go out with the first question."""
    due, report = monotonic() + 30, pool.exchange(Orders(ask={NAME: tasks}))[NAME]
    while isinstance(report, Report) and not wanted(report):
        assert monotonic() < due
        report = pool.exchange(Orders(ask={NAME: []}))[NAME]
    assert isinstance(report, Report)
    return report


def test_a_worker_that_is_asked_to_leave_ends_after_its_task(ledger: Ledger, build: Callable[[], Worker]) -> None:
    pool = LocalPool(build)
    assert pool.exchange(Orders(start=[NAME])) == {}
    [task, *_] = ledger.missing()
    report = ask_until(pool, lambda report: any(isinstance(o, TaskDone) for o in report.outcomes), task)
    assert report.ready
    pool.exchange(Orders(drain={NAME: 60.0}))
    assert ask_until(pool, lambda report: report.end).end == WorkerEnd(EndKind.DRAINED, "drained")
    assert pool.exchange(Orders(stop={NAME: "drained"})) == {}
    pool.close()


@pytest.mark.parametrize(
    ("error", "kind"), [(WorkerLost("no device"), EndKind.LOST), (PipelineError("other weights"), EndKind.PERMANENT)]
)
def test_a_worker_that_cannot_be_built_ends_with_the_reason(error: PipelineError, kind: EndKind) -> None:
    def fail() -> Worker:
        raise error

    pool = LocalPool(fail)
    pool.exchange(Orders(start=[NAME]))
    report = ask_until(pool, lambda report: report.end)
    assert report.end
    assert (report.end.kind, report.end.reason, report.ready) == (kind, str(error), False)
    pool.close()


def test_workers_in_threads_are_not_started_again_after_a_ray_is_lost(build: Callable[[], Worker]) -> None:
    with pytest.raises(RayLost, match="its GCS is gone"):
        LocalPool(build).restart(RayLost("its GCS is gone"))
