"""Who works: how many workers there are, who is replaced when, and who gets no work at all."""

import math
import re
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from pipeline.driver.workers import FAILURES_TO_BLOCK, IDLE_S, WorkerHandle, WorkerRegistry
from pipeline.errors import NoWorker, WorkerLost, WouldRepeat
from pipeline.messages import EndKind, Probe, ShardFailure, ShardTask, WorkerEnd
from pipeline.records import Shard
from pipeline.worker.host import Report, WorkerHost
from pipeline.worker.stage_timer import MetricsSnapshot
from pipeline.worker.worker import Worker

TASK = ShardTask(Shard("s", "/s.tar", 1, "e"))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def report(*, ready=True, labelled=0, node="", device="", unfit=""):
    return Report(ready=ready, made=MetricsSnapshot(Counter(ok=labelled)), node=node, device=device, unfit=unfit)


def lost(reason):
    return WorkerEnd(EndKind.LOST, reason)


def permanent(reason):
    return WorkerEnd(EndKind.PERMANENT, reason)


def started(registry, count, **said):
    """That many new workers, ready."""
    handles = registry.start()
    assert len(handles) == count
    for handle in handles:
        registry.update(handle, report(**said))
    return handles


def test_no_more_workers_than_tasks_and_no_more_than_its_size(clock):
    registry = WorkerRegistry(3, clock)
    registry.wanted = 2
    assert len(registry.start()) == 2
    registry.wanted = 100
    assert len(registry.start()) == 1
    registry.size = 5
    assert len(registry.start()) == 2


def test_a_worker_gets_no_task_before_it_is_ready(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = registry.start()
    assert (registry.free(), registry.idle(), registry.ready) == (0, 0, 0)
    registry.update(handle, report())
    assert (registry.free(), registry.idle(), registry.ready) == (2, 1, 1)
    registry.submit(TASK)
    assert (registry.free(), registry.idle()) == (1, 0)


def test_a_worker_that_is_asked_to_leave_gets_no_more(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = started(registry, 1)
    handle.leaving = True
    assert (registry.free(), registry.idle()) == (0, 0)


def test_who_has_nothing_to_do_gives_the_device_back_after_a_while(clock):
    registry = WorkerRegistry(2, clock)
    handles = started(registry, 2)
    registry.wanted = 1
    for handle in handles:
        handle.busy_at = clock.now
    assert registry.surplus() == []
    clock.now += IDLE_S + 1
    assert registry.surplus() == handles[:1], "one stays for the task that is left"
    registry.stop(handles[0], WorkerEnd(EndKind.DRAINED, "not needed"))
    assert registry.start() == []
    assert registry.surplus() == []


def test_a_worker_that_was_of_use_is_replaced_at_once_and_one_that_never_began_later_each_time(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = started(registry, 1, labelled=5)
    registry.stop(handle, lost("killed"))
    [handle] = registry.start()
    for wait in (0.5, 1.0, 2.0):
        registry.stop(handle, lost("no driver"))
        clock.now += 0.9 * wait
        assert registry.start() == []
        clock.now += 0.2 * wait
        [handle] = registry.start()
    registry.update(handle, report())
    registry.stop(handle, lost("killed"))
    assert len(registry.start()) == 1


def test_what_dismissed_workers_did_still_counts(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = started(registry, 1, labelled=5)
    registry.stop(handle, lost("killed"))
    [handle] = started(registry, 1, labelled=2)
    assert registry.made.rows == 7


def test_a_start_that_fails_for_good_or_three_times_ends_the_run(clock):
    registry = WorkerRegistry(2, clock)
    handle, _ = registry.start()
    with pytest.raises(NoWorker, match="no worker can start: other weights"):
        registry.stop(handle, permanent("other weights"))
    registry = WorkerRegistry(3, clock)
    one, two, three = registry.start()
    registry.stop(one, lost("no driver"))
    registry.stop(two, lost("no driver"))
    with pytest.raises(NoWorker, match="no worker can start: no driver"):
        registry.stop(three, lost("no driver"))


def test_a_run_whose_workers_are_gone_and_never_come_back_ends(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = started(registry, 1, labelled=5)
    registry.stop(handle, lost("node died"))

    def starve():
        for _ in range(20):
            clock.now += 100
            [handle] = registry.start()
            registry.stop(handle, lost("no driver"))

    with pytest.raises(WorkerLost, match="no worker can start: no driver") as raised:
        starve()
    assert raised.value.resumable, "nodes may come back"


def test_no_worker_is_started_again_on_a_node_where_they_keep_dying(clock):
    registry = WorkerRegistry(2, clock)
    good, bad = registry.start()
    registry.update(good, report(node="good"))
    for _ in range(FAILURES_TO_BLOCK):
        registry.update(bad, report(node="bad"))
        registry.stop(bad, lost("uncorrectable memory error"))
        clock.now += 100
        [bad] = registry.start()
    assert registry.blocked_nodes == {"bad": "uncorrectable memory error"}


def test_the_only_node_is_never_closed(clock):
    registry = WorkerRegistry(2, clock)
    one, _ = started(registry, 2, node="here")
    for _ in range(2 * FAILURES_TO_BLOCK):
        registry.stop(one, lost("died"))
        [one] = started(registry, 1, node="here")
    assert registry.blocked_nodes == {}


def test_the_search_for_poison_closes_no_node(clock):
    registry = WorkerRegistry(2, clock)
    one, other = registry.start()
    registry.update(other, report(node="other"))
    for _ in range(2 * FAILURES_TO_BLOCK):
        registry.update(one, report(node="one"))
        one.give(replace(TASK, probe=Probe(0, 3)))
        registry.stop(one, lost("segmentation fault"))
        [one] = registry.start()
    assert registry.blocked_nodes == {}


def test_an_unfit_worker_keeps_its_device_and_gets_no_work(clock):
    registry = WorkerRegistry(3, clock)
    good, bad, late = registry.start()
    registry.update(good, report())
    registry.update(bad, report(ready=False, unfit="covers 31%"))
    assert registry.free() == 2
    assert registry.start() == [], "its place is taken"
    registry.update(late, report())
    assert registry.ready == 2


def test_more_unfit_workers_than_fit_ones_stop_the_run_and_name_the_reason(clock):
    registry = WorkerRegistry(3, clock)
    good, one, two = registry.start()
    registry.update(good, report())
    registry.update(one, report(ready=False, unfit="covers 31%"))
    expected = "2 workers disagree with the run's reference image, 1 agree: covers 30%"
    with pytest.raises(WouldRepeat, match=re.escape(expected)):
        registry.update(two, report(ready=False, unfit="covers 30%"))


def test_a_run_whose_only_worker_is_unfit_ends(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = registry.start()
    with pytest.raises(NoWorker, match="no worker can start: covers 3%"):
        registry.update(handle, report(ready=False, unfit="covers 3%"))


def test_a_worker_that_turns_out_unfit_gives_back_what_it_held_and_accuses_no_sample(clock):
    registry = WorkerRegistry(2, clock)
    good, bad = registry.start()
    registry.update(good, report())
    registry.update(bad, report())
    bad.give(TASK)
    [back] = registry.update(bad, report(unfit="covers 31%"))
    assert isinstance(back, ShardFailure)
    assert (back.task, back.kind) == (TASK, "Drained"), "what costs no attempt and counts as nobody's death"
    assert bad.excluded
    assert not bad.held
    assert registry.start() == [], "its device is taken"


def test_when_the_last_worker_that_was_fit_is_so_no_more_the_run_ends(clock):
    registry = WorkerRegistry(1, clock)
    [handle] = registry.start()
    registry.update(handle, report())
    with pytest.raises(NoWorker, match="covers 31%"):
        registry.update(handle, report(unfit="covers 31%"))


def test_two_workers_on_one_device_are_one_too_many(clock):
    registry = WorkerRegistry(3, clock)
    one, two, three = registry.start()
    registry.update(one, report(device="GPU-a"))
    registry.update(two, report(device="GPU-b"))
    registry.update(three, report(device="GPU-a"))
    assert [handle.excluded for handle in (one, two, three)] == [False, False, True]


def test_a_worker_that_loads_for_too_long_hangs_and_one_that_waits_for_a_node_does_not(clock):
    handle = WorkerHandle("worker 0")
    assert not handle.is_silent(stall_s=0.0)
    assert handle.hangs(Report(still_s=2.0), stall_s=1.0)
    assert not handle.hangs(Report(ready=True, still_s=math.inf), stall_s=1.0), "it has no work"


def test_a_worker_that_waits_for_a_slow_download_does_not_stand_still(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    never = threading.Event()

    def load() -> Worker:
        never.wait()
        raise WorkerLost("no model came")

    host = WorkerHost(load)
    time.sleep(0.3)
    assert host.exchange([], 0.0).still_s >= 0.3
    part = tmp_path / ".partial-sd15-node-x" / "model" / "unet" / "w.safetensors"  # by another process of this machine
    part.parent.mkdir(parents=True)
    for size in (1, 2):
        part.write_bytes(bytes(size))
        assert host.exchange([], 0.0).still_s < 0.3
        time.sleep(0.3)
        assert host.exchange([], 0.0).still_s >= 0.3
    never.set()
