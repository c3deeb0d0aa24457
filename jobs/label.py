"""`diffseg label`: the main job. Resumes by itself: the same command does what is missing."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.labelling import Summary
    from pipeline.run.ledger import Ledger


SHOWN = 5  # faults that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The flags of [run], by the names of RunConfig; None: not given."""

    batch_size: options.BatchSize = None
    workers: Annotated[int | None, typer.Option(help="Default: one a GPU, else one a CPU. 0: here, without Ray.")] = (
        None
    )
    ray_address: Annotated[str | None, typer.Option(help="A running Ray. Default: a private one.")] = None
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, or gpu: also where the cluster has none yet and will start some."),
    ] = None
    window: Annotated[int | None, typer.Option(help="Samples a commit. Default: 1024.")] = None
    image_key: options.ImageKey = None
    also: Annotated[list[str] | None, typer.Option(help="webdataset: tars with labels beside the images.")] = None
    keep: Annotated[
        str | None, typer.Option("--keep", help="json:license,url: fields of a sample's JSON, kept in its row.")
    ] = None
    quarantine_bytes: Annotated[
        str | None, typer.Option("--quarantine-bytes", help="Of samples that kill workers: all (default) or none.")
    ] = None
    max_failed: Annotated[float | None, typer.Option(help="Share of rows without labels. Default: 0.001.")] = None
    max_attempts: Annotated[int | None, typer.Option(help="Of a task that makes no progress.")] = None
    stall: options.Stall = None
    price: options.Price = None


@options.with_options
def label(
    shards: options.Shards,
    output: Annotated[str, typer.Option(help="Folder or fsspec URL of the run.", show_default=False)],
    model: options.Model,
    segment: options.SegmentOptions,
    given: RunOptions,
    extend: Annotated[bool, typer.Option("--extend", help="Add shards to a run that was begun without them.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Label windows again that have rows without labels.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="About so many images, in windows drawn at random, not all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample: the same one draws the same windows.")] = 0,
    json: options.Json = False,
) -> int:
    """Label shards of images into a run; the same command resumes it."""
    from pipeline.config import read_config
    from pipeline.labelling import Hooks, label

    own = asdict(given) | {"also": given.also or None}
    settings, run = read_config(segment.config, segment.settings(), own)
    with console.progress() as tick:
        hooks = Hooks(opened=opened, tick=tick, note=console.note)
        summary = label(
            shards,
            output,
            model,
            settings,
            run,
            extend=extend,
            retry_failed=retry_failed,
            sample=sample,
            seed=seed,
            hooks=hooks,
        )
    return report(summary, run, json)


def opened(ledger: "Ledger") -> None:
    """Print the input and the settings of a run before it begins."""
    run, inputs = ledger.run, console.size(ledger.shards.bytes)
    settings = f"model {run.model}, mode {run.segment.mode}, {options.describe(run.segment)}"
    console.note(f"{ledger}: {len(ledger.shards):,} shards, {inputs}, {settings}")
    for note in ledger.notes:
        console.note(note)
    if not ledger.store.create_only:
        console.note(f"{ledger}: this store overwrites what exists; run one driver at a time on this output")


def report(summary: "Summary", run: "RunConfig", json: bool) -> int:
    """Print how a run ended; returns the exit code."""
    from pipeline.records import WITHDRAWN

    totals = summary.totals
    share = (totals.failed_rows - totals.failed.get(WITHDRAWN, 0)) / totals.rows if totals.rows else 0.0
    incomplete = summary.faults or (summary.sampled and summary.broken)
    code = 3 if incomplete or share > run.max_failed else 0
    if json:
        console.say_json(
            {
                "output": summary.output,
                "complete": not summary.faults and not summary.sampled,
                "sampled": summary.sampled,
                "rows": totals.rows,
                "ok": totals.rows - totals.failed_rows,
                "failed": totals.failed,
                "windows": totals.windows,
                "shards": totals.shards,
                "faults": summary.faults,
                "idle": summary.idle,
                **{name: getattr(summary.last, name, 0) for name in ("lost_workers", "wasted_windows", "retries")},
                "exit": code,
            }
        )
        return code
    for failure in summary.broken:
        console.note(f"diffseg: {failure.task.shard.url}: {failure.error}")
    for example in summary.last.examples if summary.last else ():
        console.note(f"failed row: {example}")
    for fault in summary.faults[:SHOWN]:
        console.note(f"diffseg: {fault}")
    if summary.faults:
        faults = f"{len(summary.faults)} shards or windows are not accounted for"
        console.say(f"incomplete: {totals.rows:,} rows in {summary.output}; {faults}, `diffseg verify` lists them")
        return code
    reasons = [f"{count:,} {status}" for status, count in sorted(totals.failed.items())]
    counts = ", ".join([f"{totals.rows:,} rows", f"{totals.rows - totals.failed_rows:,} ok", *reasons])
    if summary.last and summary.last.retries:
        console.note(f"{summary.last.retries:,} requests to storage were sent again")
    state = "already complete, nothing to do" if summary.idle else "complete"
    console.say(f"{'sample ' if summary.sampled else ''}{state}: {counts} in {summary.output}")
    if summary.sampled:
        console.say("the same command without --sample labels the rest")
    if code:
        console.say(f"more failed rows ({share:.2%}) than --max-failed allows ({run.max_failed:.2%})")
    return code
