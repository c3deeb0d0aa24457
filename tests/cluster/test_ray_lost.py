"""A Ray that dies, hangs or never starts: told in a line after seconds, and a private one is started afresh."""

import os
import pickle
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.cluster import Cluster, RayPool, cluster, task
from pipeline.cluster import starts as starting
from pipeline.cluster.mapping import map_on_cluster
from pipeline.cluster.messages import ClusterState, Logged
from pipeline.cluster.process import session
from pipeline.cluster.process.line import Line
from pipeline.driver.loop import drive
from pipeline.driver.progress import Counters
from pipeline.errors import ConfigError, RayLost, Stopped, WorkerLost
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.watch import Watch
from pipeline.worker.build import WorkerSettings
from pipeline.worker.host import WorkerHost
from pipeline.worker.worker import Worker

FAKE = "from tests.support.processes.fake_host import main"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "CHECK_S", 0.1)


@pytest.fixture
def raylet(tmp_path):
    """A socket that takes connections where the fakes say that their raylet does."""
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "raylet"))
        end.listen()
        yield end


@pytest.fixture
def gcs(monkeypatch):
    """The same for the GCS."""
    with socket.create_server(("127.0.0.1", 0)) as end:
        address = f"127.0.0.1:{end.getsockname()[1]}"
        monkeypatch.setenv("FAKE_GCS", address)
        yield end


def fake(place, *words, address=None, note=print, silence_s=60.0):
    """A Ray whose every start does what a word says."""
    return Cluster(address, note, silence_s, host=f"{FAKE}; main({str(place)!r}, *{words!r})")


def starts(place):
    """The folders that were made for a Ray, one a start."""
    return [Path(note.read_text()) for note in sorted(place.glob("start-*"))]


def test_what_is_asked_is_answered_and_nothing_is_left(tmp_path, raylet):
    with fake(tmp_path, "leaves") as there:
        assert there.call("echo", "word", 1) == ("word", 1)
        assert there.cpus == 3
        assert there.is_private
        left = int((tmp_path / "left").read_text())
        ours = there.session
        assert left in session.members(ours)
        [folder] = starts(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700

    assert os.getpid() in session.members(os.getsid(0))
    assert left not in session.members(ours)
    assert not folder.exists()


def test_a_private_ray_is_started_four_times_and_then_given_up_with_its_reason(tmp_path, raylet):
    notes: list[str] = []
    with pytest.raises(RayLost, match="bad luck"), fake(tmp_path, "dies", "dies", "dies", "refuses", note=notes.append):
        pass
    assert "the last it said: Ray's last words; it is started again" in notes[0]
    assert [note[-8:] for note in notes] == ["(1 of 3)", "(2 of 3)", "(3 of 3)"]
    assert len(starts(tmp_path)) == 4
    assert not any(folder.exists() for folder in starts(tmp_path))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("refuses for good", "Ray cannot start here: bad luck; free memory or disk, or do without Ray"),
        ("cannot be imported", "Ray cannot start here: ImportError: libcuda.so.1: cannot open shared object file"),
        ("unborn", "no worker can start: its process ends as it begins: libz.so.1: cannot open shared object file"),
    ],
)
def test_a_start_that_would_end_the_same_way_is_not_made_again(tmp_path, monkeypatch, word, said):
    monkeypatch.setattr(starting, "PATIENCE_S", 0.0)
    with pytest.raises(ConfigError, match=said), fake(tmp_path, word):
        pass
    assert [folder.exists() for folder in starts(tmp_path)] == [False]


def test_a_start_that_hangs_is_made_again(tmp_path, raylet):
    notes: list[str] = []

    def note(said):
        notes.append(said)
        there.silence_s = 60.0  # a machine with much to do takes seconds for any process

    there = fake(tmp_path, "hangs", "well", note=note, silence_s=1.0)
    with there:
        assert there.call("echo") == ()
    assert "does not answer for 1 s; it is started again" in notes[0]


def test_an_answer_may_take_its_time_as_long_as_it_moves():
    ours, theirs = socket.socketpair()
    there, host = Cluster(), Line(theirs)
    there._line = Line(ours)

    def crawl():
        for _ in range(6):
            time.sleep(0.3)
            host.send((0, Logged()), 5)
        host.send((1, "done"), 5)

    threading.Thread(target=crawl, daemon=True).start()
    assert there.call("crawl", within=1.0) == "done"
    with pytest.raises(RayLost, match="does not answer for 1 s"):
        there.call("crawl", within=1.0)
    there._line.close()
    host.close()


@pytest.mark.parametrize("name", ["raylet", "gcs"])
def test_what_is_lost_is_named_while_an_answer_is_awaited(tmp_path, request, raylet, gcs, name):
    with fake(tmp_path, "well") as there:
        request.getfixturevalue(name).close()
        began = time.monotonic()
        with pytest.raises(RayLost, match=f"its {name} is gone".replace("gcs", "GCS")):
            there.call("late", 30)
        assert time.monotonic() - began < 10


def test_the_answer_to_a_call_that_was_interrupted_is_not_taken_for_another(tmp_path, raylet, monkeypatch):
    def interrupt(self, within):
        raise KeyboardInterrupt

    with fake(tmp_path, "well") as there:
        with monkeypatch.context() as patch:
            patch.setattr(Line, "receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                there.call("late", 0.5)
        assert there.call("echo", "now") == ("now",)


def test_a_ray_that_did_not_answer_once_is_not_waited_for_again(tmp_path, raylet):
    with fake(tmp_path, "well") as there:
        with pytest.raises(RayLost, match="fails: no such thing"):
            there.call("fail")
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(RayLost, match="does not answer for 1 s"):
                there.call("late", 30, within=1.0)
        assert time.monotonic() - began < 0.5


def test_a_cluster_is_never_started_again(tmp_path, raylet, gcs):
    notes: list[str] = []
    address = os.environ["FAKE_GCS"]
    with pytest.raises(RayLost, match="Ray's last words"), fake(tmp_path, "dies", address=address, note=notes.append):
        pass
    with pytest.raises(ConfigError, match="bad luck"), fake(tmp_path, "refuses", address=address):
        pass
    with fake(tmp_path, "well", address=address, note=notes.append) as there:
        raylet.close()
        with pytest.raises(RayLost, match="raylet is gone") as lost:
            there.check()
        with pytest.raises(RayLost, match="raylet is gone"):
            there.restart(lost.value)
    assert notes == []
    assert len(starts(tmp_path)) == 3


def test_a_cluster_has_a_while_to_bring_its_gcs_back(tmp_path, raylet, gcs, monkeypatch):
    monkeypatch.setattr(cluster, "CALL_S", 0.5)
    with fake(tmp_path, "well", address=os.environ["FAKE_GCS"]) as there:
        gcs.close()
        there.check()
        with socket.create_server(gcs_address()):
            time.sleep(0.6)
            there.check()
        there.check()
        time.sleep(0.6)
        with pytest.raises(RayLost, match="its GCS is gone"):
            there.check()


def gcs_address():
    host, _, port = os.environ["FAKE_GCS"].rpartition(":")
    return host, int(port)


def test_a_message_is_whole_or_still_to_come():
    ours, theirs = socket.socketpair()
    here, there = Line(ours), Line(theirs)
    there.send({"a": bytes(100)}, 1.0)
    whole = ours.recv(1000)
    theirs.sendall(whole[:50])
    for _ in range(2):
        with pytest.raises(TimeoutError):
            here.receive(0.05)
    theirs.sendall(whole[50:])
    assert here.receive(1.0) == {"a": bytes(100)}
    with pytest.raises(TimeoutError):
        there.send(bytes(10_000_000), 0.1)  # nobody takes it
    there.close()
    with pytest.raises(EOFError):
        here.receive(None)
    here.close()


def test_silence_is_ended_with_what_was_awaited_and_what_came_last():
    now = [0.0]
    watch = Watch(120.0, lambda: now[0])
    with watch:
        now[0] = 119.0
        watch.check("two workers")
        watch.moved("of worker 1")
        now[0] += 100.0
    now[0] += 1e6  # of the driver's own work
    with watch:
        now[0] += 19.0
        watch.check("two workers")
        now[0] += 2.0
        with pytest.raises(Stopped, match=r"121 s \(--stall\): two workers; the last that came was of worker 1"):
            watch.check("two workers")


class Hosts:
    """A cluster of threads. script: what comes of the n-th exchange, by n: RayLost, or "silence"; under "mute" the name
    of a worker that answers no more once it has work.
    """

    gpus, cpus, is_private = 0, 2, True

    def __init__(self, script=(), silence_s=60.0, restarts=3):
        self.script, self.silence_s, self.left = dict(script), silence_s, restarts
        self.hosts, self.exchanges = {}, 0

    def look(self):
        return ClusterState(frozenset({""}), cpus=2)

    def exchange(self, orders, spec):
        self.exchanges += 1
        match self.script.get(self.exchanges, self.script.get("always")):
            case "lost":
                raise RayLost("its raylet is gone")
            case "silence":
                time.sleep(0.05)
                return {}
        for name in orders.stop:
            self.hosts.pop(name)
        for name in orders.start:
            settings, build = pickle.loads(spec.worker)
            self.hosts[name] = WorkerHost(partial(build, settings))
        mute = self.script.get("mute")
        asked = {name: tasks for name, tasks in orders.ask.items() if name != mute or not tasks}
        return {name: self.hosts[name].exchange(tasks, 0.05) for name, tasks in asked.items()}

    def restart(self, lost):
        self.hosts.clear()
        self.left -= 1
        if self.left < 0:
            raise lost


def labelled(ledger, cluster):
    """Drive a run to its end on it."""

    def build(settings):
        return Worker(Ledger.open(settings.output), FakeSegmenter(0.01, batch_size=3))

    counters = Counters()
    pool = RayPool(cluster, WorkerSettings(ledger.store.url, "fake"), 2, build)
    drive(ledger, pool, ledger.missing(), counters, silence_s=cluster.silence_s)
    return counters


def test_a_run_whose_ray_is_lost_three_times_is_whole_and_nobody_is_blamed(ledger):
    counters = labelled(ledger, Hosts({1: "lost", 4: "lost", 6: "lost"}))

    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert counters.lost_workers == 0
    assert set(counters.failures) <= {"Drained", "Overtaken"}


def test_a_ray_that_is_lost_a_fourth_time_ends_the_run_with_its_reason(ledger):
    with pytest.raises(RayLost, match="its raylet is gone"):
        labelled(ledger, Hosts({1: "lost", 4: "lost", 6: "lost", 8: "lost"}))


def test_a_run_in_which_nobody_answers_stops_with_a_reason(ledger):
    began = time.monotonic()
    with pytest.raises(Stopped, match="workers asked for: 2, ready: 0, and no answer from any"):
        labelled(ledger, Hosts({"always": "silence"}, silence_s=0.5))
    assert 0.5 < time.monotonic() - began < 5


def test_a_worker_that_answers_no_more_is_replaced_while_the_others_go_on(ledger):
    counters = labelled(ledger, Hosts({"mute": "worker 0"}, silence_s=1.0))
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert counters.lost_workers == 1


class Items:
    """A cluster that computes at once. script: what comes of the n-th round, by n: RayLost, "died", or "silence"."""

    cpus = 2

    def __init__(self, script=(), silence_s=60.0):
        self.script, self.silence_s = dict(script), silence_s
        self.rounds, self.out, self.restarts = 0, {}, 0

    def call(self, name, *given):
        if name != "results":
            self.known = given
            return None
        self.rounds += 1
        self.out |= given[0]
        match self.script.get(self.rounds, self.script.get("always")):
            case "lost":
                self.out.clear()
                raise RayLost("its GCS is gone")
            case "died" | "died with Ray":
                lost, self.out = dict.fromkeys(self.out, "WorkerCrashedError"), {}
                return lost
            case "silence":
                return {}
            case "beat":
                return dict.fromkeys(self.out)
        done = {number: task._result(self.known[0], item) for number, item in reversed(self.out.items())}
        self.out.clear()
        return done

    def check_soon(self):
        if self.script.get(self.rounds) == "died with Ray":
            raise RayLost("its raylet is gone")

    def restart(self, lost):
        self.restarts += 1


def mapped(script, function, count, silence_s=60.0):
    items = Items(script, silence_s)
    return items, list(map_on_cluster(cast(Cluster, items), function, range(count), room=4))


def test_a_map_whose_ray_and_processes_die_gives_everything_once_and_in_order():
    script = {1: "lost", 3: "beat", 4: "died", 5: "lost", 7: "died", 9: "died with Ray"}
    items, found = mapped(script, lambda n: n * n, 20)
    assert found == [n * n for n in range(20)]
    assert items.restarts == 3


def test_a_map_without_a_word_from_any_process_stops_and_one_whose_processes_die_ends():
    with pytest.raises(Stopped, match="no process is at work on any"):
        mapped({"always": "silence"}, str, 3, silence_s=0.1)
    with pytest.raises(WorkerLost, match="WorkerCrashedError"):
        mapped({"always": "died"}, str, 3)
    with pytest.raises(ZeroDivisionError):
        mapped({}, lambda n: 1 / n, 3)
