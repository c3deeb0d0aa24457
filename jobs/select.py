"""`diffseg select`: the images that people should look at, as a gallery and for a tool in which they correct them."""

from typing import Annotated

import typer

from jobs.preview import appearing
from jobs.shared import console, options


@options.with_options
def select(
    url: options.Run,
    output: Annotated[str, typer.Option(help="Folder or fsspec URL.", show_default=False)],
    read: options.ReadOptions,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides between images that are alike.")] = 0,
    format: Annotated[str, typer.Option(help="As export takes it.")] = "cvat",
    json: options.Json = False,
) -> None:
    """Images of low scores that differ from each other, and that nobody corrected: OUTPUT/index.html and an export."""
    from pipeline.datasets.selection import Selection
    from pipeline.exports.export import export
    from pipeline.gallery.preview import write_page
    from pipeline.review.select import select

    ledger, output = read.open(url), output.rstrip("/")
    chosen = select(ledger, count, seed)
    if not ledger.run.segment.vectors:
        console.note("a run without vectors: chosen by scores alone, however alike the images are")
    selection = Selection(among=frozenset(chosen))
    done = export(ledger, f"{output}/{format}", format, selection)
    with appearing(f"{output}/index.html") as out:
        write_page(ledger, out, samples=count, seed=seed, title="To be looked at", selection=selection)
    if json:
        images = [{"shard": shard, "index": index} for shard, index in chosen]
        console.say_json({"output": output, "images": images})
        return
    console.say(f"{len(chosen):,} images: {output}/index.html shows them, {done.output} is to be corrected")
    console.say(f"then: diffseg import {url} FILE, with the flags of this command that say how the run is read")
