"""Kills workers, nodes and the driver of a labelling job, and records how the job recovers: for `bench chaos`.

The driver is a process of its own, `python -m jobs.bench.chaos JOB`, started again with the same arguments after each
of its deaths. Who is killed next, and when, is drawn by seed.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import IO

from pipeline import documents
from pipeline.bench.conservation import Verdict, prove
from pipeline.bench.job import BenchJob
from pipeline.bench.local_cluster import Nodes
from pipeline.cluster import Cluster
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.searchpath import child_environment
from pipeline.storage.object_store import Store

TARGETS = ("worker", "node", "driver")
LOOK_S = 0.2  # between two looks at what is waited for
PATIENCE_S = 240.0  # without a new window: the run hangs
JOIN_S = 60.0  # for a private node to join, the head included
KILL_HOST = "from pipeline.bench.kills import serve; serve()"
LONGEST_WAIT_S = 2.5  # between the first window after a kill and the next kill
Driver = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Round:
    """One kill. windows: committed before it; recovered_s: until the next window was."""

    run: int
    target: str
    lost_workers: int
    windows: int
    recovered_s: float


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that was brought to its end through its rounds. code, output: of the last driver."""

    number: int
    code: int
    output: str
    rounds: tuple[Round, ...]
    seconds: float
    verdict: Verdict

    def broken(self) -> list[str]:
        """The laws that do not hold."""
        lost = sum(each.lost_workers for each in self.rounds)
        failed = [f"the last driver ended with exit {self.code}: {self.output}"] if self.code else []
        return failed + list(self.verdict.broken(lost))


@contextmanager
def chaos_monkey(
    job: BenchJob, nodes: Nodes | None, rng: random.Random, targets: Sequence[str]
) -> Iterator["ChaosMonkey"]:
    """A monkey that sees the cluster of a job. nodes: private ones; one is started for each worker."""
    with ExitStack() as stack:
        until = monotonic() + JOIN_S  # a private head needs some seconds
        while True:
            try:
                cluster = stack.enter_context(Cluster(job.ray_address, host=KILL_HOST))
                break
            except ConfigError:
                if not nodes or monotonic() > until:
                    raise
                sleep(1)
        monkey = ChaosMonkey(job, cluster, nodes, rng, targets)
        for count in range(job.workers if nodes else 0):
            monkey.add_node(count + 2)
        yield monkey


class ChaosMonkey:
    """Kills a driver, its workers and their nodes, and times the run's recovery. nodes: None on a user's cluster."""

    def __init__(
        self, job: BenchJob, cluster: Cluster, nodes: Nodes | None, rng: random.Random, targets: Sequence[str]
    ) -> None:
        self._job, self._cluster, self._nodes, self._rng, self._targets = job, cluster, nodes, rng, targets
        self._rounds: list[Round] = []
        self._gone: set[str | int] = set()  # nodes and processes that Ray may take for alive for some seconds more

    def run_rounds(self, rounds: int, images: int) -> Iterator[FinishedRun]:
        """Run after run, until there were so many rounds. images: of every shard."""
        number = 0
        while len(self._rounds) < rounds:
            number += 1
            job, before = replace(self._job, output=f"{self._job.output}/run-{number}"), len(self._rounds)
            began = monotonic()
            code, output = self._run(job, number, rounds)
            seconds, verdict = monotonic() - began, prove(Ledger.open(job.output), images)
            yield FinishedRun(number, code, output, tuple(self._rounds[before:]), seconds, verdict)

    def _run(self, job: BenchJob, number: int, rounds: int) -> tuple[int, str]:
        """From the first driver of a run to the end of its last one: its exit code and the end of its output."""
        with tempfile.TemporaryFile() as log:
            driver = _start(job, log)
            try:
                self._await_window(job, driver, 0)
                while driver.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        driver.wait(self._rng.uniform(0, LONGEST_WAIT_S))
                    if len(self._rounds) == rounds:
                        driver.wait(PATIENCE_S)
                    elif driver.poll() is None and (killed := self._kill(driver)):
                        target, lost = killed
                        driver = _start(job, log) if target == "driver" else driver
                        began, windows = monotonic(), _windows(job)
                        self._await_window(job, driver, windows)
                        self._rounds.append(Round(number, target, lost, windows, monotonic() - began))
            finally:
                driver.kill()
                driver.wait()
            log.seek(0)
            return driver.returncode, log.read().decode(errors="replace")[-2000:]

    def _await_window(self, job: BenchJob, driver: Driver, windows: int) -> None:
        """Until more windows than these are committed, or the driver has ended."""
        self._await(lambda: _windows(job) > windows or driver.poll() is not None, f"window after {windows}", PATIENCE_S)

    def _await(self, done: Callable[[], object], what: str, seconds: float) -> None:
        """Raises TimeoutError, with what it waited for and the last words of private nodes."""
        until = monotonic() + seconds
        while not done():
            if monotonic() > until:
                raise TimeoutError(f"no {what} in {seconds:.0f} s {self._nodes.last_words() if self._nodes else ''}")
            sleep(LOOK_S)

    def _kill(self, driver: Driver) -> tuple[str, int] | None:
        """Kill a target that is drawn: what it was, and how many workers went with it. None where none was left."""
        target = self._rng.choice(self._targets)
        self._await(lambda: self._workers(driver) or driver.poll() is not None, "worker of the driver", PATIENCE_S)
        workers = self._workers(driver)
        if not workers:
            return None
        node, pid = self._rng.choice(workers)
        if target == "driver":
            driver.kill()
            driver.wait()
            return target, len(workers)
        if target == "node" and self._kill_node(node):
            return target, sum(other == node for other, _ in workers)
        self._gone.add(pid)
        if self._nodes:
            os.kill(pid, signal.SIGKILL)
        else:
            self._cluster.call("kill_on_node", node, pid)
        return "worker", 1

    def _workers(self, driver: Driver) -> list[tuple[str, int]]:
        """Node and process of each worker of a driver."""
        alive: list[tuple[str, int]] = self._cluster.call("workers_of", driver.pid)
        return [(node, pid) for node, pid in alive if not {node, pid} & self._gone]

    def _kill_node(self, node: str) -> bool:
        """False where it must stay: the head, the one this process is on, the last one."""
        own, alive = self._cluster.call("nodes")
        has = {name: resources for name, resources in alive.items() if name not in self._gone}
        spare = [name for name, resources in has.items() if resources.get("CPU", 0) >= 1 and name != node]
        if node not in has or node == own or "node:__internal_head__" in has[node] or not spare:
            return False
        self._gone.add(node)
        if self._nodes:
            self._nodes.kill(next(int(name[5:]) for name in has[node] if name.startswith("node-")))
            self._nodes.add()
        else:
            self._cluster.call("kill_on_node", node, None)
        return True

    def add_node(self, count: int) -> None:
        """Another private node; returns when `count` have joined: two that start at once disturb each other."""
        assert self._nodes
        self._nodes.add()
        self._await(lambda: len(self._cluster.look().nodes) >= count, f"{count} nodes", JOIN_S)


def _windows(job: BenchJob) -> int:
    return sum(name.endswith(".parquet") for name, _ in Store(job.output).list("labels/"))


def _start(job: BenchJob, log: IO[bytes]) -> Driver:
    command = [sys.executable, "-m", "jobs.bench.chaos", documents.to_json(job).decode()]
    found = os.environ | child_environment()
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=found)
