"""`diffseg bench chaos`: a labelling job that loses workers, nodes and drivers to SIGKILL and whose storage breaks, and
the proof that nothing was lost, doubled or blamed.

The driver is a process of its own, `python -m jobs.bench_chaos TRIAL`, started again with the same words after each
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
from typing import Annotated, Any

import typer

from jobs import console, options
from jobs.bench_nodes import Nodes, private_nodes

TARGETS = ("worker", "node", "driver")
LOOK_S = 0.2  # between two looks at the output
PATIENCE_S = 240.0  # without a new window: the run hangs
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


def chaos(
    output: Annotated[str | None, typer.Option("--output", help="Any store. Default: a folder that goes.")] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Your cluster. Default: nodes as processes here.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Processes, nodes or drivers killed.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Draws who dies, and when.")] = 0,
    target: Annotated[list[str] | None, typer.Option("--target", help="worker, node, driver; default: all.")] = None,
    storage_faults: Annotated[
        float, typer.Option("--storage-faults", min=0, max=0.5, help="Share of requests that fail.")
    ] = 0.02,
    model: Annotated[str | None, typer.Option("--model", help="A real model. Default: a fake one.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Of the fake model, an image.")] = 0.05,
    shards: Annotated[int, typer.Option("--shards", min=1)] = 12,
    images: Annotated[int, typer.Option("--images", min=1, help="Of a shard.")] = 96,
    window: Annotated[int, typer.Option("--window", min=1)] = 16,
    workers: Annotated[int, typer.Option("--workers", min=1)] = 2,
    json: options.Json = False,
) -> int:
    """Kill workers, nodes and drivers of a labelling job, break its storage, and prove that nothing is missing."""
    from pipeline.errors import ConfigError
    from pipeline.trial import Trial, write_photos

    targets = tuple(target or TARGETS)
    if unknown := set(targets) - set(TARGETS):
        raise ConfigError(f"--target is one of {', '.join(TARGETS)}, got {sorted(unknown)[0]}")
    with ExitStack() as stack:
        place = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="diffseg-chaos-"))
        nodes = None if ray_address else stack.enter_context(private_nodes())
        trial = Trial(
            photos=write_photos(place, shards, images, (96, 128), seed),
            output=place,
            workers=workers,
            window=window,
            model=model,
            seconds=seconds,
            ray_address=nodes.address if nodes else ray_address,
            storage_faults=storage_faults,
            outage_s=2.0 if storage_faults else 0.0,
            seed=seed,
        )
        monkey = stack.enter_context(_monkey(trial, nodes, random.Random(seed), targets))
        return _report(list(monkey.torment(rounds, images)), json)


@contextmanager
def _monkey(trial: Any, nodes: Nodes | None, luck: random.Random, targets: Sequence[str]) -> Iterator["Monkey"]:
    import ray

    from pipeline.actor import keep_stdout

    for attempt in range(60):  # the head needs some seconds
        try:
            ray.init(address=trial.ray_address, logging_level="ERROR", log_to_driver=False)
            break
        except Exception:
            if not nodes or attempt == 59:
                raise
            sleep(1)
    keep_stdout()
    try:
        monkey = Monkey(trial, nodes, luck, targets)
        for count in range(trial.workers if nodes else 0):
            monkey.add_node(count + 2)
        yield monkey
    finally:
        ray.shutdown()


class Monkey:
    """Strikes a driver's workers, their nodes and itself, and keeps the books of it."""

    def __init__(self, trial: Any, nodes: Nodes | None, luck: random.Random, targets: Sequence[str]) -> None:
        self.trial, self._nodes, self._luck, self._targets = trial, nodes, luck, targets
        self.rounds: list[Round] = []
        self._gone: set[str | int] = set()  # nodes and processes that Ray may take for alive for some seconds more

    def torment(self, rounds: int, images: int) -> Iterator["Ended"]:
        """Run after run, until there were so many rounds."""
        from pipeline.chaos import prove
        from pipeline.ledger import Ledger

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
            found = [v for v in _workers_of(driver.pid) if not {v.node, v.pid} & self._gone]
            if found:
                return found
            sleep(LOOK_S)
        return []

    def _kill_worker(self, victim: Victim) -> None:
        if self._nodes:
            os.kill(victim.pid, signal.SIGKILL)
        else:
            _on_node(victim.node, victim.pid)

    def _kill_node(self, victim: Victim) -> bool:
        """False where it may not go: the head, the one we are on, the last one."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._gone]
        here = ray.get_runtime_context().get_node_id()
        node = next((node for node in alive if node["NodeID"] == victim.node), None)
        spare = [other for other in alive if other["Resources"].get("CPU", 0) >= 1 and other is not node]
        if node is None or victim.node == here or "node:__internal_head__" in node["Resources"] or not spare:
            return False
        self._gone.add(victim.node)
        if self._nodes:
            number = next(int(name[5:]) for name in node["Resources"] if name.startswith("node-"))
            self._nodes.kill(number)
            self._nodes.add()
        else:
            _on_node(victim.node, None)
        return True

    def add_node(self, nodes: int) -> None:
        """Another private node, waited for: two that start at once on one address disturb each other."""
        import ray

        assert self._nodes
        self._nodes.add()
        for _ in range(300):
            if sum(node["Alive"] for node in ray.nodes()) >= nodes:
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


def _workers_of(driver: int) -> list[Victim]:
    """Processes of living actors of the job that a process on this machine drives."""
    import ray
    from ray._private.state import state  # what `ray list actors` asks too, which wants a dashboard

    jobs = [job["JobID"] for job in state.job_table() if job["DriverPid"] == driver and not job["IsDead"]]
    found = []
    for job in jobs:
        actors = state.actor_table(None, ray.JobID.from_hex(job), "ALIVE")
        found += [Victim(actor["Address"]["NodeID"], actor["Pid"]) for actor in actors.values()]
    return sorted(found, key=lambda victim: (victim.node, victim.pid))


def _on_node(node: str, pid: int | None) -> None:
    """Kill a process on a node of somebody's cluster; None: what holds the node in the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def end(pid: int | None) -> None:
        os.kill(pid or os.getppid(), signal.SIGKILL)

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(end).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    ray.wait([task.remote(pid)], timeout=20)


def _windows(trial: Any) -> int:
    from pipeline.store import Store

    return sum(name.endswith(".parquet") for name, _ in Store(trial.output).list("labels/"))


def _start(trial: Any, log: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.bench_chaos", trial.to_json()], stdout=log, stderr=log, start_new_session=True
    )


def _report(ended: list[Ended], json: bool) -> int:
    broken = [f"run {one.number}: {law}" for one in ended for law in one.broken()]
    lost = sum(blow.lost_workers for one in ended for blow in one.rounds)
    wasted = [count for one in ended for count in one.verdict.wasted]
    told = {
        "rounds": [
            {"run": b.run, "target": b.target, "lost_workers": b.lost_workers, "windows": b.windows,
             "recovered_s": round(b.recovered_s, 2)}
            for one in ended for b in one.rounds
        ],
        "samples": sum(one.verdict.samples for one in ended),
        "rows": sum(one.verdict.rows for one in ended),
        "lost": sum(one.verdict.lost for one in ended),
        "twice": sum(one.verdict.twice for one in ended),
        "windows": sum(one.verdict.windows for one in ended),
        "lost_workers": lost,
        "windows_labelled_again": sum(wasted),
        "worst_worker": max(wasted, default=0),
        "seconds": round(sum(one.seconds for one in ended), 1),
        "broken": broken,
    }  # fmt: skip
    if json:
        console.say_json(told)
        return 1 if broken else 0
    rows = [
        [str(place), str(b.run), b.target, str(b.lost_workers), str(b.windows), f"{b.recovered_s:.1f}"]
        for place, b in enumerate((blow for one in ended for blow in one.rounds), 1)
    ]
    console.table("chaos", ["round", "run", "killed", "workers lost", "windows then", "next one after s"], rows)
    for law in broken:
        console.say(f"BROKEN: {law}")
    console.say(
        f"{told['rows']:,} rows of {told['samples']:,} samples in {len(ended)} runs: {told['lost']} lost, "
        f"{told['twice']} twice; {told['windows_labelled_again']} of {told['windows']} windows labelled again for "
        f"{lost} lost workers, {told['worst_worker']} at most for one"
    )
    return 1 if broken else 0


def main() -> int:
    """Be a driver of a trial, to its end."""
    from pipeline.chaos import Witness
    from pipeline.trial import Trial, run_trial

    summary = run_trial(Trial.from_json(sys.argv[1]), Witness)
    return 3 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
