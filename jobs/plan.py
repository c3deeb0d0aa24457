"""`diffseg plan`: hours, cost and bytes of a run, estimated from a pilot's speed."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shared import console, options

SHOWN = 5  # damaged shards that are named

if TYPE_CHECKING:
    from pipeline.pilot.plan import Plan, Speed


def plan(
    shards: options.Shards,
    pilot: Annotated[str | None, typer.Option(help="The pilot.json that `diffseg pilot` wrote.")] = None,
    images_per_second: Annotated[float | None, typer.Option(help="Of one worker, in place of a pilot.")] = None,
    image_bytes: Annotated[
        float | None, typer.Option(help="Labels of one image on storage, in place of a pilot.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="A run whose table of --categories is measured, for one of all.")
    ] = None,
    categories: Annotated[str | None, typer.Option(help="A table of `categories` of --run: NAME.")] = None,
    price: options.Price = None,
    deadline: options.Deadline = None,
    image_key: Annotated[str | None, typer.Option(help="Extension or column of the image.")] = None,
    json: options.Json = False,
) -> None:
    """Say how much there is to label, and what it will take."""
    from pipeline.errors import ConfigError
    from pipeline.inputs import count
    from pipeline.inputs.shards import pin
    from pipeline.pilot import plan as planning
    from pipeline.run.ledger import Ledger

    if (run is None) != (categories is None):
        raise ConfigError("--run and --categories go together: a run, and a table of it")
    seconds = size = 0.0
    if run and categories:
        from pipeline.categories.categorise import cost_of

        seconds, size = cost_of(Ledger.open(run), categories)
    speed = _speed(pilot, images_per_second, image_bytes)
    planning.plan(count.Counts({}, exact=True), 0, speed, price=price, deadline=deadline)  # refuses before it reads
    pinned = pin(shards, note=console.note if json else console.say)
    counts = count.count(pinned, image_key)
    for damage in counts.damaged[:SHOWN]:
        console.note(f"not read to its end: {damage}")
    made = planning.plan(counts, sum(shard.size for shard in pinned), speed, price=price, deadline=deadline)
    if json:
        more = {"categories_core_hours": made.images * seconds / 3600, "categories_bytes": made.images * size}
        console.say_json(asdict(made) | (more if run else {}))
        return
    shown = f"{console.duration(made.images * seconds)} of a core, {console.size(round(made.images * size))}"
    console.table("", ["", ""], rows(made, speed, price) + ([["categories", shown]] if run else []))
    command = "label --output URL" if speed else "pilot"
    console.say(f"next: diffseg {command} --model NAME {named(shards)}")


def named(shards: list[str]) -> str:
    """Patterns as they are typed on a command line; of many, only the first."""
    return shlex.join(shards) if len(shards) < 4 else f"{shlex.quote(shards[0])} ..."


def rows(made: "Plan", speed: "Speed | None", price: float | None) -> list[list[str]]:
    """The lines of a plan's table."""
    from pipeline.pilot.plan import EFFICIENCY

    images = f"{made.images:,}"
    if not made.exact:
        near = f" ± {made.error:.0%}" if made.error is not None else ""
        images = f"about {images}{near}, estimated from the beginnings of a few shards"
    lines = [["input", f"{made.shards:,} shards, {console.size(made.bytes)}"], ["images", images]]
    if speed is None or made.worker_hours is None:
        return [*lines, ["hours, cost", "unknown: --pilot pilot.json, or --images-per-second"]]
    lines.append(["one worker", f"{speed.images_per_s:,.2f} images/s, {EFFICIENCY:.0%} of the time"])
    hours = made.worker_hours
    lines.append(["worker-hours", f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"])
    if made.cost is not None:
        lines.append(["cost", f"{made.cost:,.2f} at {price:,.2f} an hour"])
    if made.output_bytes is not None:
        lines.append(["output", console.size(made.output_bytes)])
    if made.workers is not None:
        lines.append(["workers", f"{made.workers:,} to be done in {made.deadline_hours:g} hours"])
    return lines


def _speed(pilot: str | None, images_per_second: float | None, image_bytes: float | None) -> "Speed | None":
    from pipeline.errors import ConfigError
    from pipeline.pilot.plan import Speed, read_pilot

    if pilot is not None:
        if images_per_second is not None or image_bytes is not None:
            raise ConfigError("--pilot brings the speed: leave --images-per-second and --image-bytes out")
        return read_pilot(pilot)
    if images_per_second is None:
        if image_bytes is not None:
            raise ConfigError("--image-bytes goes with --images-per-second")
        return None
    return Speed(images_per_s=images_per_second, output_bytes=image_bytes)
