"""Who kills workers, nodes and the driver of a labelling job, and keeps the books of it: for `bench chaos`.

The driver is a process of its own, `python -m jobs.bench.chaos TRIAL`, started again with the same words after each
death. Who dies next, and when, is drawn by seed.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Any

from pipeline.bench.local_cluster import Nodes
from pipeline.searchpath import child_environment

TARGETS = ("worker", "node", "driver")
LOOK_S = 0.2  # between two looks at the output
PATIENCE_S = 240.0  # without a new window: the run hangs
KILL_HOST = "from pipeline.bench.kills import serve; serve()"
LONGEST_WAIT_S = 2.5  # between the first window after a blow and the next blow


@dataclass(frozen=True, slots=True)
class Victim:
    """A worker process of the driver, and its node."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class Round:
    """One blow. windows: committed when it fell; recovered_s: until the next window was."""

    run: int
    target: str
    lost_workers: int
    windows: int
    recovered_s: float


@contextmanager
def chaos_monkey(
    trial: Any, nodes: Nodes | None, luck: random.Random, targets: Sequence[str]
) -> Iterator["ChaosMonkey"]:
    """A monkey that sees the cluster of a trial; of private nodes it starts as many as there are workers."""
    from pipeline.cluster import Cluster
    from pipeline.errors import ConfigError

    with ExitStack() as stack:
        for attempt in range(60):  # the head needs some seconds
            try:
                cluster = stack.enter_context(Cluster(trial.ray_address, host=KILL_HOST))
                break
            except ConfigError:
                if not nodes or attempt == 59:
                    raise
                sleep(1)
        monkey = ChaosMonkey(trial, cluster, nodes, luck, targets)
        for count in range(trial.workers if nodes else 0):
            monkey.add_node(count + 2)
        yield monkey


class ChaosMonkey:
    """Strikes a driver's workers, their nodes and itself, and keeps the books of it."""

    def __init__(
        self, trial: Any, cluster: Any, nodes: Nodes | None, luck: random.Random, targets: Sequence[str]
    ) -> None:
        self.trial, self._cluster, self._nodes, self._luck, self._targets = trial, cluster, nodes, luck, targets
        self.rounds: list[Round] = []
        self._gone: set[str | int] = set()  # nodes and processes that Ray may take for alive for some seconds more

    def torment(self, rounds: int, images: int) -> Iterator["Ended"]:
        """Run after run, until there were so many rounds."""
        from pipeline.bench.conservation import prove
        from pipeline.run.ledger import Ledger

        number = 0
        while len(self.rounds) < rounds:
            number += 1
            trial, first = replace(self.trial, output=f"{self.trial.output}/run-{number}"), len(self.rounds)
            began = monotonic()
            code, said = self._one_run(trial, number, rounds)
            took = monotonic() - began
            yield Ended(number, code, said, tuple(self.rounds[first:]), took, prove(Ledger.open(trial.output), images))

    def _one_run(self, trial: Any, number: int, rounds: int) -> tuple[int, str]:
        """From the first driver to the last one's end: its exit code and last words."""
        with tempfile.TemporaryFile() as log:
            driver = _start(trial, log)
            try:
                self._await_window(trial, driver, -1)
                while driver.poll() is None:
                    self._wait(driver, self._luck.uniform(0, LONGEST_WAIT_S))
                    if len(self.rounds) == rounds:
                        driver.wait(PATIENCE_S)
                    elif driver.poll() is None and (blow := self._strike(driver)):
                        target, lost = blow
                        driver = _start(trial, log) if target == "driver" else driver
                        fell, before = monotonic(), _windows(trial)
                        self._await_window(trial, driver, before)
                        self.rounds.append(Round(number, target, lost, before, monotonic() - fell))
            finally:
                driver.kill()
                driver.wait()
            log.seek(0)
            return driver.returncode, log.read().decode(errors="replace")[-2000:]

    def _await_window(self, trial: Any, driver: "subprocess.Popen[bytes]", than: int) -> int:
        """Until more windows are committed, or the driver has ended."""
        until = monotonic() + PATIENCE_S
        while (count := _windows(trial)) <= max(0, than) and driver.poll() is None:
            if monotonic() > until:
                said = self._nodes.said() if self._nodes else ""
                raise TimeoutError(f"no window was committed for {PATIENCE_S:.0f} s after {count} {said}")
            sleep(LOOK_S)
        return count

    def _wait(self, driver: "subprocess.Popen[bytes]", seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            driver.wait(seconds)

    def _strike(self, driver: "subprocess.Popen[bytes]") -> tuple[str, int] | None:
        """Kill whoever is drawn: what it was, and how many workers went with it. None where the driver had ended."""
        target = self._luck.choice(self._targets)
        victims = self._victims(driver)
        if not victims:
            return None
        victim = self._luck.choice(victims)
        if target == "driver":
            driver.kill()
            driver.wait()
            return target, len(victims)
        if target == "node" and self._kill_node(victim):
            return target, sum(other.node == victim.node for other in victims)
        self._gone.add(victim.pid)
        self._kill_worker(victim)
        return "worker", 1

    def _victims(self, driver: "subprocess.Popen[bytes]") -> list[Victim]:
        """The driver's workers, once it has some; none where it ended before."""
        while driver.poll() is None:
            there = [Victim(*one) for one in self._cluster.call("workers_of", driver.pid)]
            found = [victim for victim in there if not {victim.node, victim.pid} & self._gone]
            if found:
                return found
            sleep(LOOK_S)
        return []

    def _kill_worker(self, victim: Victim) -> None:
        if self._nodes:
            os.kill(victim.pid, signal.SIGKILL)
        else:
            self._cluster.call("kill_there", victim.node, victim.pid)

    def _kill_node(self, victim: Victim) -> bool:
        """False where it may not go: the head, the one we are on, the last one."""
        here, alive = self._cluster.call("nodes")
        has = {node: resources for node, resources in alive.items() if node not in self._gone}
        spare = [node for node, resources in has.items() if resources.get("CPU", 0) >= 1 and node != victim.node]
        if victim.node not in has or victim.node == here or "node:__internal_head__" in has[victim.node] or not spare:
            return False
        self._gone.add(victim.node)
        if self._nodes:
            number = next(int(name[5:]) for name in has[victim.node] if name.startswith("node-"))
            self._nodes.kill(number)
            self._nodes.add()
        else:
            self._cluster.call("kill_there", victim.node, None)
        return True

    def add_node(self, nodes: int) -> None:
        """Another private node, waited for: two that start at once on one address disturb each other."""
        assert self._nodes
        self._nodes.add()
        for _ in range(300):
            if len(self._cluster.look().nodes) >= nodes:
                return
            sleep(0.2)
        raise TimeoutError(f"no node joined: {self._nodes.said()}")


@dataclass(frozen=True, slots=True)
class Ended:
    """A run, its blows and what is proven of it."""

    number: int
    code: int
    said: str
    rounds: tuple[Round, ...]
    seconds: float
    verdict: Any

    def broken(self) -> list[str]:
        """The laws that do not hold."""
        lost = sum(blow.lost_workers for blow in self.rounds)
        ended = [f"the last driver ended with exit {self.code}: {self.said}"] if self.code else []
        return ended + list(self.verdict.broken(lost))


def _windows(trial: Any) -> int:
    from pipeline.storage.object_store import Store

    return sum(name.endswith(".parquet") for name, _ in Store(trial.output).list("labels/"))


def _start(trial: Any, log: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs.bench.chaos", trial.to_json()]
    found = os.environ | child_environment()
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=found)
