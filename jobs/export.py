"""`diffseg export`: a run in the formats that other tools read."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.exports.export import Exported

SHOWN = 5  # missing windows that are named


@options.with_options
def export(
    url: options.Run,
    format: Annotated[
        str,
        typer.Option(
            "--format", help="coco-segments, coco-panoptic, png, webdataset, huggingface, sa1b, cvat, label-studio."
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="Folder or fsspec URL of the export.", show_default=False)],
    read: options.ReadOptions,
    compute: options.ComputeOptions,
    where: options.Where = None,
    min_area: Annotated[float, typer.Option(help="Share of the image; smaller segments are left out.")] = 0.0,
    min_score: Annotated[float, typer.Option(help="Segments of lower score are left out.")] = 0.0,
    instances: options.ReadInstances = None,
    things: Annotated[str | None, typer.Option(help="Categories that are counted: NAME,NAME.")] = None,
    stuff: Annotated[str | None, typer.Option(help="Categories that are not: one region an image each.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images at most, the first in order of shard.")] = None,
    split: Annotated[float | None, typer.Option(help="Share of train, by hash of the key; the rest is val.")] = None,
    images: Annotated[bool | None, typer.Option(help="Photos beside the labels. Default: yes.")] = None,
    members: Annotated[
        bool | None, typer.Option(help="webdataset: a sample's other members too. Default: yes.")
    ] = None,
    json: options.Json = False,
) -> int:
    """Write what is committed of a run for other tools; the same command resumes it."""
    from time import monotonic

    from pipeline.datasets.selection import Selection
    from pipeline.exports.export import export

    selection = Selection(where=where, min_area=min_area, min_score=min_score, limit=limit, split=split)
    ledger, began = read.open(url), monotonic()
    with compute.map() if compute.processes or compute.ray_address else nullcontext(map) as parallel_map:
        done = export(
            ledger,
            output,
            format,
            selection,
            images=images,
            members=members,
            instances=instances,
            things=things,
            stuff=stuff,
            parallel_map=parallel_map,
            tick=lambda state: console.note(f"{state.tally.images:,} images in {state.parts:,} parts"),
        )
    return report(done, monotonic() - began, json)


def report(done: "Exported", seconds: float, json: bool) -> int:
    """Print the result of an export, and what is missing from it; returns the exit code."""
    from pipeline.records import CHANGED

    tally = done.state.tally
    code = 3 if any(reason.startswith(CHANGED) for reason in tally.left_out) else 0
    if json:
        console.say_json(
            {
                "output": done.output,
                "images": tally.images,
                "sides": done.state.sides,
                "rows": tally.rows,
                "left_out": tally.left_out,
                "missing": done.missing,
                "idle": done.idle,
                "seconds": round(seconds, 3),
            }
        )
        return code
    if done.missing:
        console.note("diffseg: the run is not finished; what is missing is not in this export:")
        for line in done.missing[:SHOWN]:
            console.note(f"  {line}")
        if len(done.missing) > SHOWN:
            console.note(f"  and {len(done.missing) - SHOWN:,} more")
    for reason, rows in sorted(tally.left_out.items()):
        console.note(f"left out: {rows:,} rows, {reason}")
    sides = ", ".join(f"{images:,} {side}" for side, images in sorted(done.state.sides.items()))
    speed = "already complete" if done.idle else f"{tally.images / seconds:.1f} images/s"
    console.say(f"{done.output}: {tally.images:,} images ({sides or 'none wanted'}), {speed}")
    return code
