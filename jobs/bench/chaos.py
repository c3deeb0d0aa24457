"""`diffseg bench chaos`: a labelling job whose workers, nodes and drivers are killed and whose storage breaks, and the
proof that no sample was lost, doubled or blamed.
"""

import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options
from pipeline import process

if TYPE_CHECKING:
    from pipeline.bench.chaos_monkey import FinishedRun


def chaos(
    output: Annotated[str | None, typer.Option(help="Any store. Default: a folder that goes.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Your cluster. Default: nodes as processes here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes, nodes or drivers killed.")] = 10,
    seed: Annotated[int, typer.Option(help="Draws who dies, and when.")] = 0,
    target: Annotated[list[str] | None, typer.Option(help="worker, node, driver; default: all.")] = None,
    storage_faults: Annotated[float, typer.Option(min=0, max=0.5, help="Share of requests that fail.")] = 0.02,
    model: Annotated[str | None, typer.Option(help="A real model. Default: a fake one.")] = None,
    seconds: Annotated[float, typer.Option(help="Of the fake model, an image.")] = 0.05,
    shards: Annotated[int, typer.Option(min=1)] = 12,
    images: Annotated[int, typer.Option(min=1, help="Of a shard.")] = 96,
    window: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    json: options.Json = False,
) -> int:
    """Kill workers, nodes and drivers of a labelling job, break its storage, and prove that nothing is missing."""
    from pipeline.bench.chaos_monkey import TARGETS, chaos_monkey
    from pipeline.bench.job import BenchJob, write_photos
    from pipeline.bench.local_cluster import private_nodes
    from pipeline.errors import ConfigError

    targets = tuple(target or TARGETS)
    if unknown := set(targets) - set(TARGETS):
        raise ConfigError(f"--target is one of {', '.join(TARGETS)}, got {sorted(unknown)[0]}")
    with ExitStack() as stack:
        folder = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="diffseg-chaos-"))
        nodes = None if ray_address else stack.enter_context(private_nodes())
        job = BenchJob(
            photos=write_photos(folder, shards, images, (96, 128), seed),
            output=folder,
            workers=workers,
            window=window,
            model=model,
            seconds=seconds,
            ray_address=nodes.address if nodes else ray_address,
            storage_faults=storage_faults,
            outage_s=2.0 if storage_faults else 0.0,
            seed=seed,
        )
        monkey = stack.enter_context(chaos_monkey(job, nodes, random.Random(seed), targets))
        return _report(list(monkey.run_rounds(rounds, images)), json)


def _report(runs: "list[FinishedRun]", json: bool) -> int:
    broken = [f"run {run.number}: {law}" for run in runs for law in run.broken()]
    rounds = [each for run in runs for each in run.rounds]
    verdicts = [run.verdict for run in runs]
    lost = sum(each.lost_workers for each in rounds)
    wasted = [count for verdict in verdicts for count in verdict.wasted]
    summed = ("samples", "rows", "lost", "twice", "windows")
    report = {
        "rounds": [asdict(each) | {"recovered_s": round(each.recovered_s, 2)} for each in rounds],
        **{name: sum(getattr(each, name) for each in verdicts) for name in summed},
        "lost_workers": lost,
        "windows_labelled_again": sum(wasted),
        "worst_worker": max(wasted, default=0),
        "seconds": round(sum(run.seconds for run in runs), 1),
        "broken": broken,
    }
    if json:
        console.say_json(report)
        return 1 if broken else 0
    rows = [
        [str(place), str(each.run), each.target, str(each.lost_workers), str(each.windows), f"{each.recovered_s:.1f}"]
        for place, each in enumerate(rounds, 1)
    ]
    console.table("chaos", ["round", "run", "killed", "workers lost", "windows then", "next one after s"], rows)
    for law in broken:
        console.say(f"BROKEN: {law}")
    console.say(
        f"{report['rows']:,} rows of {report['samples']:,} samples in {len(runs)} runs: "
        f"{report['lost']} lost, {report['twice']} twice; "
        f"{report['windows_labelled_again']} of {report['windows']} windows labelled again for "
        f"{lost} lost workers, {report['worst_worker']} at most for one"
    )
    return 1 if broken else 0


def main() -> int:
    """Be a driver of a job, to its end."""
    from pipeline.bench.conservation import BeginRecorder
    from pipeline.bench.job import BenchJob, run_job
    from pipeline.documents import from_json

    summary = run_job(from_json(BenchJob, sys.argv[1]), BeginRecorder)
    return 3 if summary.faults else 0


if __name__ == "__main__":
    process.run(main)
