"""Who works: how many workers there are, who is replaced when, and who gets no work at all."""

import math
import re
import threading
import time
from dataclasses import replace

import pytest

from pipeline.driver.workers import IDLE_S, STRIKES, WorkerHandle, WorkerRegistry
from pipeline.errors import NoWorker, WorkerLost, WouldRepeat
from pipeline.messages import Probe, ShardTask
from pipeline.records import Shard
from pipeline.worker.host import DRAINED, Report, WorkerHost

TASK = ShardTask(Shard("s", "/s.tar", 1, "e"))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def report(*, ready=True, labelled=0, node="", device="", unfit=""):
    return Report((), labelled, ready, 0.0, node=node, device=device, unfit=unfit)


def hired(staff, count, **said):
    """That many new workers, ready."""
    desks = staff.hire()
    assert len(desks) == count
    for desk in desks:
        staff.note(desk, report(**said))
    return desks


def test_no_more_workers_than_tasks_and_no_more_than_its_size(clock):
    staff = WorkerRegistry(3, clock)
    staff.want(2)
    assert len(staff.hire()) == 2
    staff.want(100)
    assert len(staff.hire()) == 1
    staff.size = 5
    assert len(staff.hire()) == 2


def test_a_worker_gets_no_task_before_it_is_ready(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = staff.hire()
    assert (staff.free(), staff.idle(), staff.ready) == (0, 0, 0)
    staff.note(desk, report())
    assert (staff.free(), staff.idle(), staff.ready) == (2, 1, 1)
    staff.submit(TASK)
    assert (staff.free(), staff.idle()) == (1, 0)


def test_a_worker_that_is_asked_to_leave_gets_no_more(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = hired(staff, 1)
    desk.leaving = True
    assert (staff.free(), staff.idle()) == (0, 0)


def test_who_has_nothing_to_do_gives_the_device_back_after_a_while(clock):
    staff = WorkerRegistry(2, clock)
    desks = hired(staff, 2)
    staff.want(1)
    for desk in desks:
        desk.busy = clock.now
    assert staff.surplus() == []
    clock.now += IDLE_S + 1
    assert staff.surplus() == desks[:1], "one stays for the task that is left"
    staff.dismiss(desks[0], DRAINED)
    assert staff.hire() == []
    assert staff.surplus() == []


def test_a_worker_that_was_of_use_is_replaced_at_once_and_one_that_never_began_later_each_time(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = hired(staff, 1, labelled=5)
    staff.dismiss(desk, "killed")
    [desk] = staff.hire()
    for wait in (0.5, 1.0, 2.0):
        staff.dismiss(desk, "no driver")
        clock.now += 0.9 * wait
        assert staff.hire() == []
        clock.now += 0.2 * wait
        [desk] = staff.hire()
    staff.note(desk, report())
    staff.dismiss(desk, "killed")
    assert len(staff.hire()) == 1


def test_what_dismissed_workers_did_still_counts(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = hired(staff, 1, labelled=5)
    staff.dismiss(desk, "killed")
    [desk] = hired(staff, 1, labelled=2)
    assert staff.labelled == 7


def test_a_start_that_is_hopeless_or_fails_three_times_ends_the_run(clock):
    staff = WorkerRegistry(2, clock)
    desk, _ = staff.hire()
    with pytest.raises(NoWorker, match="no worker can start: other weights"):
        staff.dismiss(desk, "other weights", permanent=True)
    staff = WorkerRegistry(3, clock)
    one, two, three = staff.hire()
    staff.dismiss(one, "no driver")
    staff.dismiss(two, "no driver")
    with pytest.raises(NoWorker, match="no worker can start: no driver"):
        staff.dismiss(three, "no driver")


def test_a_run_whose_workers_are_gone_and_never_come_back_ends(clock):
    staff = WorkerRegistry(1, clock)
    staff.dismiss(*hired(staff, 1, labelled=5), "node died")

    def starve():
        for _ in range(20):
            clock.now += 100
            staff.dismiss(*staff.hire(), "no driver")

    with pytest.raises(WorkerLost, match="no worker can start: no driver") as raised:
        starve()
    assert raised.value.resumable, "nodes may come back"


def test_no_worker_is_started_again_on_a_node_where_they_keep_dying(clock):
    staff = WorkerRegistry(2, clock)
    good, bad = staff.hire()
    staff.note(good, report(node="good"))
    for _ in range(STRIKES):
        staff.note(bad, report(node="bad"))
        staff.dismiss(bad, "uncorrectable memory error")
        clock.now += 100
        [bad] = staff.hire()
    assert staff.blocked_nodes == {"bad": "uncorrectable memory error"}


def test_the_only_node_is_never_closed(clock):
    staff = WorkerRegistry(2, clock)
    one, _ = hired(staff, 2, node="here")
    for _ in range(2 * STRIKES):
        staff.dismiss(one, "died")
        [one] = hired(staff, 1, node="here")
    assert staff.blocked_nodes == {}


def test_the_search_for_poison_closes_no_node(clock):
    staff = WorkerRegistry(2, clock)
    one, other = staff.hire()
    staff.note(other, report(node="other"))
    for _ in range(2 * STRIKES):
        staff.note(one, report(node="one"))
        one.give(replace(TASK, probe=Probe(0, 3)))
        staff.dismiss(one, "segmentation fault")
        [one] = staff.hire()
    assert staff.blocked_nodes == {}


def test_an_unfit_worker_keeps_its_device_and_gets_no_work(clock):
    staff = WorkerRegistry(3, clock)
    good, bad, late = staff.hire()
    staff.note(good, report())
    staff.note(bad, report(ready=False, unfit="covers 31%"))
    assert staff.free() == 2
    assert staff.hire() == [], "its place is taken"
    staff.note(late, report())
    assert staff.ready == 2


def test_more_unfit_workers_than_fit_ones_stop_the_run_and_name_the_reason(clock):
    staff = WorkerRegistry(3, clock)
    good, one, two = staff.hire()
    staff.note(good, report())
    staff.note(one, report(ready=False, unfit="covers 31%"))
    expected = "2 workers disagree with the run's reference image, 1 agree: covers 30%"
    with pytest.raises(WouldRepeat, match=re.escape(expected)):
        staff.note(two, report(ready=False, unfit="covers 30%"))


def test_a_run_whose_only_worker_is_unfit_ends(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = staff.hire()
    with pytest.raises(NoWorker, match="no worker can start: covers 3%"):
        staff.note(desk, report(ready=False, unfit="covers 3%"))


def test_a_worker_that_turns_out_unfit_gives_back_what_it_held_and_accuses_no_sample(clock):
    staff = WorkerRegistry(2, clock)
    good, bad = staff.hire()
    staff.note(good, report())
    staff.note(bad, report())
    bad.give(TASK)
    [back] = staff.note(bad, report(unfit="covers 31%"))
    assert (back.task, back.kind) == (TASK, "Drained"), "what costs no attempt and counts as nobody's death"
    assert bad.left_out
    assert not bad.held
    assert staff.hire() == [], "its device is taken"


def test_when_the_last_worker_that_was_fit_is_so_no_more_the_run_ends(clock):
    staff = WorkerRegistry(1, clock)
    [desk] = staff.hire()
    staff.note(desk, report())
    with pytest.raises(NoWorker, match="covers 31%"):
        staff.note(desk, report(unfit="covers 31%"))


def test_two_workers_on_one_device_are_one_too_many(clock):
    staff = WorkerRegistry(3, clock)
    one, two, three = staff.hire()
    staff.note(one, report(device="GPU-a"))
    staff.note(two, report(device="GPU-b"))
    staff.note(three, report(device="GPU-a"))
    assert [desk.left_out for desk in (one, two, three)] == [False, False, True]


def test_a_worker_that_loads_for_too_long_hangs_and_one_that_waits_for_a_node_does_not(clock):
    desk = WorkerHandle("worker 0")
    assert not desk.hangs(None, stall_s=0.0)
    assert desk.hangs(Report((), 0, False, still_s=2.0), stall_s=1.0)
    assert not desk.hangs(Report((), 0, True, still_s=math.inf), stall_s=1.0), "it has no work"


def test_a_worker_that_waits_for_a_slow_download_does_not_stand_still(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    never = threading.Event()
    station = WorkerHost(never.wait)
    time.sleep(0.3)
    assert station.exchange([], 0.0).still_s >= 0.3
    part = tmp_path / ".partial-sd15-node-x" / "model" / "unet" / "w.safetensors"  # by another process of this machine
    part.parent.mkdir(parents=True)
    for size in (1, 2):
        part.write_bytes(bytes(size))
        assert station.exchange([], 0.0).still_s < 0.3
        time.sleep(0.3)
        assert station.exchange([], 0.0).still_s >= 0.3
    never.set()
