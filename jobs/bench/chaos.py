"""`diffseg bench chaos`: a labelling job that loses workers, nodes and drivers to SIGKILL and whose storage breaks, and
the proof that nothing was lost, doubled or blamed.
"""

import random
import sys
import tempfile
from contextlib import ExitStack
from typing import Annotated

import typer

from jobs.shared import console, options
from pipeline import process
from pipeline.bench.chaos_monkey import TARGETS, Ended, chaos_monkey
from pipeline.bench.local_cluster import private_nodes


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
    from pipeline.bench.job import BenchJob, write_photos
    from pipeline.errors import ConfigError

    targets = tuple(target or TARGETS)
    if unknown := set(targets) - set(TARGETS):
        raise ConfigError(f"--target is one of {', '.join(TARGETS)}, got {sorted(unknown)[0]}")
    with ExitStack() as stack:
        place = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="diffseg-chaos-"))
        nodes = None if ray_address else stack.enter_context(private_nodes())
        trial = BenchJob(
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
        monkey = stack.enter_context(chaos_monkey(trial, nodes, random.Random(seed), targets))
        return _report(list(monkey.torment(rounds, images)), json)


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
    from pipeline.bench.conservation import BeginRecorder
    from pipeline.bench.job import BenchJob, run_job

    summary = run_job(BenchJob.from_json(sys.argv[1]), BeginRecorder)
    return 3 if summary.faults else 0


if __name__ == "__main__":
    process.run(main)
