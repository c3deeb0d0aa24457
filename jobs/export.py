"""`diffseg export`: a run in the formats that other tools read."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.exports.export import Exported

SHOWN = 5  # missing windows that are named

Where = Annotated[
    str | None,
    typer.Option("--where", help="Rows wanted, such as 'num_segments > 3 and num_segments < 40'."),
]
MinArea = Annotated[float, typer.Option("--min-area", help="Share of the image; smaller segments are left out.")]
MinScore = Annotated[float, typer.Option("--min-score", help="Segments of lower score are left out.")]
Split = Annotated[float | None, typer.Option("--split", help="Share of train, by hash of the key; the rest is val.")]
Images = Annotated[bool | None, typer.Option("--images/--no-images", help="Photos beside the labels. Default: yes.")]
Things = Annotated[str | None, typer.Option("--things", help="Categories that are counted: NAME,NAME.")]
Stuff = Annotated[str | None, typer.Option("--stuff", help="Categories that are not: one region an image each.")]
Members = Annotated[
    bool | None,
    typer.Option("--members/--no-members", help="webdataset: a sample's other members too. Default: yes."),
]


def export(
    url: Annotated[str, typer.Argument(help="The run: the folder or URL given to label --output.")],
    format: Annotated[
        str, typer.Option("--format", help="coco-segments, coco-panoptic, png, webdataset, huggingface or sa1b.")
    ],
    output: Annotated[str, typer.Option("--output", help="Folder or fsspec URL of the export.", show_default=False)],
    where: Where = None,
    min_area: MinArea = 0.0,
    min_score: MinScore = 0.0,
    cut: options.ReadCut = None,
    segments: options.ReadSegments = None,
    calibration: options.ReadCalibration = None,
    categories: options.ReadCategories = None,
    instances: options.ReadInstances = None,
    things: Things = None,
    stuff: Stuff = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Images at most, the first in order of shard.")] = None,
    split: Split = None,
    images: Images = None,
    members: Members = None,
    ray_address: options.RayAddress = None,
    stall: options.Stall = None,
    json: options.Json = False,
) -> None:
    """Write what is committed of a run for other tools; the same command resumes it."""
    from time import monotonic

    from pipeline.cluster.parallel import parallel_mapping
    from pipeline.datasets.selection import Selection
    from pipeline.derived.joined import open_run
    from pipeline.exports.export import export

    selection = Selection(where=where, min_area=min_area, min_score=min_score, limit=limit, split=split)
    ledger, began = open_run(url, options.cut_of(cut, segments), calibration, categories), monotonic()
    with (
        parallel_mapping(ray_address=ray_address, note=console.note, silence_s=stall)
        if ray_address
        else nullcontext() as parallel_map
    ):
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
    report(done, monotonic() - began, json)


def report(done: "Exported", seconds: float, json: bool) -> None:
    """Print the result of an export, and what is missing from it."""
    from pipeline.records import CHANGED

    tally = done.state.tally
    changed = any(reason.startswith(CHANGED) for reason in tally.left_out)
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
        if changed:
            raise typer.Exit(3)
        return
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
    if changed:
        raise typer.Exit(3)
