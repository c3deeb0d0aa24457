"""`diffseg demo`: the main job on a dozen real photos, with the embedded model or another, then the gallery."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from jobs.label import opened, report
from jobs.preview import write_preview
from jobs.shared import console, options

SHARDS = 2  # so that two workers have something to do


def demo(
    model: options.Model = "tiny",
    output: Annotated[Path, typer.Option(help="Folder for shards, run and gallery.")] = Path("runs/demo"),
    workers: Annotated[int | None, typer.Option(help="Default: one a GPU, else one a CPU.")] = None,
) -> int:
    """Label real photos on a local Ray and write a gallery of the result; without --model with the embedded one."""
    from diffseg.config import SegmentConfig
    from pipeline.config import RunConfig
    from pipeline.labelling import Hooks, label
    from pipeline.run.ledger import Ledger

    shards = write_shards(output / "photos")
    run = RunConfig(workers=workers)
    with console.progress() as tick:
        console.note(f"labelling {len(shards)} shards of photos with {model} on a local Ray")
        summary = label(
            shards,
            str(output / "run"),
            model,
            SegmentConfig(),
            run,
            hooks=Hooks(opened=opened, tick=tick, note=console.note),
        )
    code = report(summary, run, json=False)
    gallery = output / "gallery.html"
    write_preview(Ledger.open(str(output / "run")), str(gallery), title="DiffSeg demo")
    console.say(f"gallery: {gallery.resolve().as_uri()}")
    console.say("next: diffseg segment your.jpg --model tiny")
    console.say("      diffseg label 'your-{00000..00009}.tar' --model sd1.5 --output runs/first")
    return code


def write_shards(folder: Path) -> list[str]:
    """Write the demo photos as WebDataset shards; existing files stay, so that the run can resume."""
    from pipeline.inputs.tar.writing import write_samples

    photos = sorted(
        (entry for entry in files("jobs").joinpath("photos").iterdir() if entry.name.endswith(".jpg")),
        key=lambda entry: entry.name,
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(SHARDS):
        path = folder / f"photos-{number:05d}.tar"
        data = write_samples(
            (photo.name.split(".")[0], {"jpg": photo.read_bytes()}) for photo in photos[number::SHARDS]
        )
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
        paths.append(str(path))
    return paths
