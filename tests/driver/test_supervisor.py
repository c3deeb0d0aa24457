"""Rounds with workers: what the driver orders when nodes go, come or fall silent, seen at the seam."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from time import sleep

import pytest

from pipeline.driver import supervisor as module
from pipeline.driver.pool import Capacity
from pipeline.driver.progress import Counters
from pipeline.driver.supervisor import Supervisor
from pipeline.driver.workers import IDLE_S
from pipeline.errors import Drained, RayLost, Stopped, WorkerLost
from pipeline.messages import EndKind, Orders, ShardFailure, ShardTask, WorkerEnd
from pipeline.records import Shard
from pipeline.worker.host import Report
from pipeline.worker.stage_timer import MetricsSnapshot

TASK = ShardTask(Shard("s", "/s.tar", 1, "e"))
READY = Report(ready=True, node="a")


class NodesPool:
    """Workers that answer at once with what a test says, by name; None: they are silent. orders: all it was given."""

    def __init__(self, workers: int, answer: Report = READY) -> None:
        self.workers, self.now = workers, Capacity(workers, frozenset({"a"}))
        self.answer = answer
        self.answers: dict[str, Report | WorkerEnd | None] = {}
        self.orders: list[Orders] = []
        self.lost: dict[str, RayLost] = {}  # by the call that finds out
        self.restarts = 0

    def capacity(self) -> Capacity:
        if lost := self.lost.get("capacity"):
            raise lost
        return self.now

    def exchange(self, orders: Orders) -> Mapping[str, Report | WorkerEnd]:
        self.orders.append(orders)
        if lost := self.lost.get("exchange"):
            raise lost
        answers = {name: self.answers.get(name, self.answer) for name in orders.ask}
        return {name: answer for name, answer in answers.items() if answer}

    def restart(self, lost: RayLost) -> None:
        self.restarts += 1
        self.lost.clear()

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _look_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY_S", -1.0)


def supervise(pool: NodesPool, **settings: float) -> Supervisor:
    """Workers that have been started and are ready; there is more to do than they can."""
    supervisor = Supervisor(pool, Counters(), **settings)
    supervisor.registry.wanted = 100
    assert supervisor.round() == []
    return supervisor


def test_workers_are_started_asked_and_given_their_tasks_once() -> None:
    pool = NodesPool(2)
    supervisor = supervise(pool)
    assert pool.orders[0].start == ["worker 0", "worker 1"]
    supervisor.registry.submit(TASK)
    supervisor.round()
    supervisor.round()
    assert [orders.start for orders in pool.orders[1:]] == [[], []]
    assert [orders.ask["worker 0"] for orders in pool.orders] == [[], [TASK], []]


def test_workers_whose_node_is_about_to_go_are_asked_to_leave_once() -> None:
    pool = NodesPool(2)
    pool.answers["worker 1"] = replace(READY, node="b")
    supervisor = supervise(pool)
    pool.now = Capacity(2, frozenset({"a", "b"}), {"b": 30.0})
    supervisor.round()
    supervisor.round()
    assert [orders.drain for orders in pool.orders] == [{}, {"worker 1": 30.0}, {}]
    assert supervisor.registry.idle() == 1

    supervisor.registry.submit(TASK)
    pool.answers["worker 1"] = WorkerEnd(EndKind.DRAINED, "drained")
    assert supervisor.round() == []
    supervisor.round()
    assert (list(pool.orders[-1].stop), pool.orders[-1].start) == (["worker 1"], ["worker 2"])


def test_a_worker_that_is_stopped_is_not_asked_to_leave_as_well() -> None:
    pool = NodesPool(2)
    supervisor = supervise(pool)
    for handle in supervisor.registry.handles:
        handle.busy_at -= IDLE_S + 1
    supervisor.registry.wanted = 1
    pool.now = Capacity(2, frozenset({"a"}), {"a": 30.0})
    supervisor.round()
    assert (list(pool.orders[-1].stop), pool.orders[-1].drain) == (["worker 0"], {"worker 1": 30.0})


def test_more_workers_are_started_where_the_cluster_grows_and_none_is_stopped_where_it_shrinks() -> None:
    pool = NodesPool(1)
    supervisor = supervise(pool)
    pool.now = Capacity(3, frozenset({"a", "b"}))
    supervisor.round()
    pool.now = Capacity(1, frozenset({"a"}))
    supervisor.round()
    assert [len(orders.start) for orders in pool.orders] == [1, 2, 0]
    assert not any(orders.stop for orders in pool.orders)


def test_a_worker_that_gets_no_work_is_not_asked_and_goes_with_its_node() -> None:
    pool = NodesPool(2)
    pool.answers["worker 1"] = replace(READY, ready=False, node="b", unfit="covers 31%")
    supervisor = supervise(pool)
    pool.now = Capacity(2, frozenset({"a", "b"}))
    supervisor.round()
    assert list(pool.orders[-1].ask) == ["worker 0"]
    pool.now = Capacity(2, frozenset({"a"}))
    supervisor.round()
    assert (list(pool.orders[-1].stop), pool.orders[-1].start) == (["worker 1"], ["worker 2"])


@pytest.mark.parametrize("call", ["exchange", "capacity"])
def test_after_a_ray_is_lost_all_tasks_come_back_and_no_worker_is_blamed(call: str) -> None:
    pool = NodesPool(2)
    supervisor = supervise(pool)
    supervisor.registry.submit(TASK)
    supervisor.round()
    pool.lost[call] = RayLost("its raylet is gone")
    [back] = supervisor.round()
    assert isinstance(back, ShardFailure)
    assert (back.task, back.kind, pool.restarts) == (TASK, Drained.kind, 1)
    assert supervisor.round() == []
    assert (pool.orders[-1].start, pool.orders[-1].stop) == (["worker 2", "worker 3"], {})


def test_a_worker_with_work_that_does_not_answer_is_replaced() -> None:
    pool = NodesPool(2)
    supervisor = supervise(pool, stall_s=0.0)
    supervisor.registry.submit(TASK)
    pool.answers["worker 0"] = None
    [back] = supervisor.round()
    assert isinstance(back, ShardFailure)
    assert (back.task, back.kind, back.error) == (TASK, WorkerLost.kind, "worker 0: no answer")
    supervisor.round()
    assert (pool.orders[-1].start, pool.orders[-1].stop) == (["worker 2"], {"worker 0": "no answer"})


def test_a_run_whose_workers_are_all_silent_stops() -> None:
    pool = NodesPool(1)
    supervisor = supervise(pool, silence_s=0.5)
    pool.answers["worker 0"] = None
    assert supervisor.round() == []
    sleep(0.6)
    assert supervisor.round() == [], "the driver's own time does not count"
    pool.exchange = lambda orders: sleep(0.6) or {}  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(Stopped, match="workers asked for: 1, ready: 1, and no answer from any"):
        supervisor.round()


def test_what_workers_count_is_added_to_what_was_counted_before() -> None:
    pool, counters = NodesPool(2, replace(READY, made=MetricsSnapshot(Counter(ok=5), retries=1))), Counters()
    counters.labelled = 100
    supervisor = Supervisor(pool, counters)
    supervisor.registry.wanted = 100
    supervisor.round()
    pool.answers["worker 0"] = WorkerEnd(EndKind.LOST, "killed")
    supervisor.round()
    assert (counters.labelled, counters.retries, counters.ready_workers) == (110, 2, 1)
