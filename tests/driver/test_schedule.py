"""The driver's state machine, by itself: whatever order events come in, no window is lost, and it always ends."""

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.driver.progress import Counters
from pipeline.driver.schedule import DEATHS_IN_A_ROW, Action, CheckStorage, Quarantine, Queue, Schedule
from pipeline.errors import AlreadyCommitted, Drained, Stopped, StorageError, WorkerLost
from pipeline.messages import Heartbeat, Receipt, ShardFailure, ShardTask, TaskDone
from pipeline.records import Shard
from pipeline.run.shard_index import ShardIndex

WINDOW = 4


def shard(number):
    return Shard(f"s{number}", f"/data/s{number}.tar", 100, "etag")


PINS = ShardIndex(map(shard, range(4)))


def next_task(schedule: Schedule, free: int = 1, now: float = 0.0) -> ShardTask:
    """The task that a worker gets now, of which there is one."""
    task = schedule.next(free, free, now)
    assert task is not None
    return task


def the_check(actions: Sequence[Action]) -> CheckStorage:
    """The only action, which is a look at storage."""
    [check] = actions
    assert isinstance(check, CheckStorage)
    return check


class Storage:
    """What is committed, and what each shard truly holds."""

    def __init__(self, windows):
        self.windows = windows  # by shard id
        self.done: dict[str, set[int]] = {name: set() for name in windows}
        self.ended = set()  # shards with an end record

    def left_of(self, task):
        """Runs of missing windows within a task, the last open where the task was and its shard is not complete."""
        count, done = self.windows[task.shard.id], self.done[task.shard.id]
        last = count - 1 if task.last_window is None else min(task.last_window, count - 1)
        missing = [window for window in range(task.first_window, last + 1) if window not in done]
        parts: list[ShardTask] = []
        for window in missing:
            if parts and parts[-1].last_window == window - 1:
                parts[-1] = ShardTask(task.shard, parts[-1].first_window, window, attempt=task.attempt)
            else:
                parts.append(ShardTask(task.shard, window, window, attempt=task.attempt))
        if task.last_window is None and parts and parts[-1].last_window == last:
            parts[-1] = ShardTask(task.shard, parts[-1].first_window, None, attempt=task.attempt)
        elif task.last_window is None and task.shard.id not in self.ended:
            parts.append(ShardTask(task.shard, count, None, attempt=task.attempt))
        return parts

    def end(self, task):
        """A task was read to its end; whether its shard has an end record now."""
        complete = len(self.done[task.shard.id]) == self.windows[task.shard.id]
        if complete and task.last_window is None:
            self.ended.add(task.shard.id)
        return task.shard.id in self.ended


class Driving(RuleBasedStateMachine):
    """A driver whose workers commit, finish, fail, drain, meet others and die in any order; some samples kill."""

    @initialize(
        windows=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        poison=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 15)), max_size=2),
    )
    def begin(self, windows, poison):
        self.storage = Storage({f"s{number}": count for number, count in enumerate(windows)})
        self.poison = {(f"s{n}", index) for n, index in poison if n < len(windows) and index < windows[n] * WINDOW}
        self.counters, self.now, self.out, self.checks = Counters(), 0.0, [], []
        self.rows, self.deaths = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
        self.named, self.outside = set(), 0
        self.schedule = Schedule(
            ShardIndex(map(shard, range(len(windows)))), WINDOW, self.counters, max_attempts=3, rng=Random(1)
        )
        self.schedule.add(ShardTask(shard(number)) for number in range(len(windows)))

    def heard(self, outcome):
        for action in self.schedule.record(outcome):
            assert isinstance(action, CheckStorage), "nothing here is beyond another attempt"
            self.checks.append(action)

    def commit(self, task, window):
        name = task.shard.id
        if window not in self.storage.done[name]:
            self.storage.done[name].add(window)
            self.rows[name, window] += 1
            self.heard(Receipt(name, window, WINDOW, (), 10, 0.1))

    def doomed(self, task):
        """The first window of a task that holds a sample which kills and is not known to; None: it can be done."""
        known = set(task.probe.poison) if task.probe else set()
        for part in self.storage.left_of(task):
            for window in range(part.first_window, self.last(part) + 1):
                inside = range(window * WINDOW, (window + 1) * WINDOW)
                if any((task.shard.id, index) in self.poison and index not in known for index in inside):
                    return window
        return None

    def last(self, task):
        return self.storage.windows[task.shard.id] - 1 if task.last_window is None else task.last_window

    def take(self, data):
        return self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))

    @rule(workers=st.integers(1, 4))
    def hand_over(self, workers):
        free = 2 * workers - len(self.out)
        while task := self.schedule.next(free, max(0, workers - len(self.out)), self.now):
            self.out.append(task)
            free -= 1

    @rule(seconds=st.floats(0.1, 100))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.checks)
    @rule(data=st.data())
    def check_storage(self, data):
        self.answer(self.checks.pop(data.draw(st.integers(0, len(self.checks) - 1))))

    def answer(self, check):
        task = ShardTask(check.task.shard) if check.whole else check.task
        self.checks += self.schedule.requeue(check, self.storage.left_of(task), self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def work(self, data):
        """A worker goes through a task as far as it can: to its end, or to what kills it."""
        self.work_at(self.take(data))

    def work_at(self, task):
        if task.probe:
            self.search(task)
            return
        doomed = self.doomed(task)
        for window in range(task.first_window, min(self.last(task), self.storage.windows[task.shard.id] - 1) + 1):
            if window == doomed:
                self.deaths[task.shard.id, window] += 1
                beat = Heartbeat(task.shard.id, window, window * WINDOW, window * WINDOW + 1)
                self.heard(ShardFailure(task, WorkerLost.kind, "died", True, heartbeats=(beat,)))
                return
            self.commit(task, window)
        self.heard(TaskDone(task, ended=self.storage.end(task)))

    def search(self, task):
        window = task.first_window
        if window >= self.storage.windows[task.shard.id]:  # suspected beyond the end: there is nothing to read
            self.heard(TaskDone(task))
            return
        indices = range(window * WINDOW, (window + 1) * WINDOW)
        self.named |= {(task.shard.id, index) for index in task.probe.poison}
        for piece in task.probe.pieces(indices):
            if any((task.shard.id, index) in self.poison for index in piece):
                self.deaths[task.shard.id, window] += 1
                beat = Heartbeat(task.shard.id, window, piece[0], piece[-1], probed=True)
                self.heard(ShardFailure(task, WorkerLost.kind, "died", True, heartbeats=(beat,)))
                return
        self.commit(task, window)
        self.heard(TaskDone(task))

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        kind=st.sampled_from([Drained.kind, AlreadyCommitted.kind, WorkerLost.kind]),
        committed=st.integers(0, 2),
    )
    def leave(self, data, kind, committed):
        """A worker goes in the middle of a task: it was asked to, met another driver, or was never ready."""
        task = self.take(data)
        doomed = self.doomed(task)
        for window in range(task.first_window, min(self.last(task) + 1, task.first_window + committed)):
            if task.probe or window == doomed or window >= self.storage.windows[task.shard.id]:
                break
            self.commit(task, window)
        self.heard(ShardFailure(task, kind, "gone", True))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def killed(self, data):
        """A machine is taken away in the middle of a window; a probe's is announced, as it always is."""
        task = self.take(data)
        left = self.storage.left_of(task)
        if not left or self.outside > 12:
            self.out.append(task)
            return
        self.outside += 1
        window = left[0].first_window
        first = window * WINDOW
        last = first + WINDOW - 1
        beat = Heartbeat(task.shard.id, window, first, last, probed=task.probe is not None)
        self.heard(ShardFailure(task, WorkerLost.kind, "machine gone", True, heartbeats=(beat,)))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def other_driver(self, data):
        """Somebody else commits a window of a task that is out, which this driver learns from storage alone."""
        task = data.draw(st.sampled_from(self.out))
        for part in self.storage.left_of(task)[:1]:
            if part.first_window < self.storage.windows[task.shard.id]:
                self.storage.done[task.shard.id].add(part.first_window)

    @invariant()
    def no_window_is_made_twice_or_forgotten(self):
        if not hasattr(self, "schedule"):
            return
        assert max(self.rows.values(), default=0) <= 1
        if self.storage.ended != self.storage.done.keys():
            assert self.schedule.unfinished

    @invariant()
    def only_true_poison_is_named(self):
        if hasattr(self, "schedule"):
            assert self.named <= self.poison

    def teardown(self):
        """With nothing but honest workers from here on, it ends, complete."""
        if not hasattr(self, "schedule"):
            return

        for _ in range(10_000):
            if not self.schedule.unfinished:
                break
            while self.checks:
                self.answer(self.checks.pop())
            self.now += 100
            while task := self.schedule.next(2 - len(self.out), 1 - bool(self.out), self.now):
                self.out.append(task)
            if self.out:
                self.work_at(self.out.pop())
        assert not self.schedule.unfinished
        assert self.storage.ended == self.storage.done.keys()
        assert all(len(done) == self.storage.windows[name] for name, done in self.storage.done.items())
        assert all(count <= 4 + 2 + self.outside + len(self.poison) * 4 for count in self.deaths.values())


Driving.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # a long story is told in seconds; a short one takes minutes
)
test_any_order_of_events_loses_no_window_and_ends = Driving.TestCase


def test_a_failure_waits_longer_each_time_and_is_given_up_in_the_end():
    counters = Counters()
    schedule = Schedule(PINS, WINDOW, counters, max_attempts=3)
    schedule.add([ShardTask(shard(0))])
    now = 0.0
    for wait in (1.0, 2.0):
        task = next_task(schedule, now=now)
        check = the_check(schedule.record(ShardFailure(task, StorageError.kind, "reset", True)))
        schedule.requeue(check, [check.task], now)
        assert schedule.next(1, 1, now + 0.9 * wait) is None
        now += wait
    task = next_task(schedule, now=now)
    failure = ShardFailure(task, StorageError.kind, "reset", True)
    assert task.attempt == 3
    assert schedule.record(failure) == [Quarantine(failure)]
    assert schedule.unfinished == 0
    assert counters.failures == {"StorageError": 3}


def test_a_shard_met_by_another_driver_comes_after_all_others_and_later_each_time():
    schedule = Schedule(PINS, WINDOW, Counters())
    schedule.add([ShardTask(shard(0)), ShardTask(shard(1))])
    met = next_task(schedule)
    check = the_check(schedule.record(ShardFailure(met, AlreadyCommitted.kind, "was there", True)))
    schedule.requeue(check, [met], 0.0)
    assert {met.shard, next_task(schedule, now=5.0).shard} == {shard(0), shard(1)}
    again = next_task(schedule, now=5.0)
    assert again == met
    check = the_check(schedule.record(ShardFailure(again, AlreadyCommitted.kind, "was there", True)))
    assert check.delay_s == 2.0


def test_deaths_without_a_window_between_them_stop_the_run():
    schedule = Schedule(PINS, WINDOW, Counters())
    schedule.add([ShardTask(shard(0))])

    def die(times):
        for _ in range(times):
            task = next_task(schedule)
            died = ShardFailure(
                task, WorkerLost.kind, "fell off the bus", True, heartbeats=(Heartbeat("other", 0, 0, 0),)
            )
            schedule.requeue(the_check(schedule.record(died)), [task], 0.0)

    die(DEATHS_IN_A_ROW + 1)
    with pytest.raises(Stopped, match="42 workers died in a row, the last: fell off the bus"):
        die(1)


def test_a_shard_that_is_over_leaves_nothing_in_memory():
    counters = Counters()
    schedule = Schedule(PINS, WINDOW, counters)
    schedule.add([ShardTask(shard(0))])
    task = next_task(schedule)
    schedule.record(Receipt("s0", 0, 4, (), 70, 0.1))
    assert counters.bytes_done == 70
    schedule.record(TaskDone(task, 1, ended=True))
    assert (counters.bytes_done, counters.open_bytes, schedule._out, schedule._progressed) == (70, {}, {}, set())


def test_a_queue_knows_the_parts_it_holds():
    queue = Queue(PINS, Random(1))
    part = ShardTask(shard(0), 1, 2)
    queue.put(ShardTask(shard(1)), 0.0)
    queue.put(part, 0.0)
    queue.put(part, 7.0)
    assert (len(queue), queue.holds("s0"), queue.holds("s1")) == (3, True, False)
    assert queue.take(1, 0, 0.0) == part
    assert queue.take(1, 0, 9.0) == ShardTask(shard(1)), "what has never been tried comes first"
    assert queue.take(1, 0, 6.0) is None
    assert queue.take(1, 0, 7.0) == part
    assert not queue.holds("s0")
    assert len(queue) == 0


def test_the_end_of_a_shard_is_seen_to_though_its_last_part_was_lost_after_its_commit():
    schedule = Schedule(PINS, WINDOW, Counters())
    parts = [ShardTask(shard(0), 0, 1), ShardTask(shard(0), 2, None)]
    schedule.add(parts)
    out = [next_task(schedule, free=2) for _ in parts]
    first, last = sorted(out, key=parts.index)
    assert schedule.record(TaskDone(last)) == [], "the first part is still out"
    check = the_check(schedule.record(ShardFailure(first, WorkerLost.kind, "killed", True)))
    whole = the_check(schedule.requeue(check, [], 0.0))
    assert whole == CheckStorage(first, whole=True)
    assert schedule.requeue(whole, [ShardTask(shard(0), 3, None)], 0.0) == []
    assert schedule.next(1, 1, 0.0) == ShardTask(shard(0), 3, None)


def test_windows_that_a_task_has_found_no_samples_for_are_given_up_and_not_read_for_ever():
    counters = Counters()
    schedule = Schedule(PINS, WINDOW, counters)
    schedule.add([ShardTask(shard(0), 3, 98)])
    check = the_check(schedule.record(TaskDone(next_task(schedule))))
    rest = ShardTask(shard(0), 100, None)
    [given_up] = schedule.requeue(check, [ShardTask(shard(0), 4, 98), rest], 0.0)
    assert isinstance(given_up, Quarantine)
    assert "window 4 to 98: the shard has no samples for them" in given_up.failure.error
    assert schedule.next(1, 1, 0.0) == rest, "what else is missing is still done"


def test_a_task_that_ends_beyond_its_shard_leaves_only_the_end_to_be_recorded():
    schedule = Schedule(PINS, WINDOW, Counters())
    schedule.add([ShardTask(shard(0), 5, 9)])
    check = the_check(schedule.record(TaskDone(next_task(schedule))))
    assert schedule.requeue(check, [ShardTask(shard(0), 7, None)], 0.0) == []
    assert schedule.next(1, 1, 0.0) == ShardTask(shard(0), 7, None)
