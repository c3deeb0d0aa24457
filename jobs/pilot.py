"""`diffseg pilot`: a sample at several cuts or thresholds, with speed and cost of a whole run."""

import json as json_format
import shlex
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.plan import named
from jobs.plan import rows as plan_rows
from jobs.preview import appearing
from jobs.shared import console, options

if TYPE_CHECKING:
    from diffseg.config import SegmentConfig
    from diffseg.models.load import Backend
    from pipeline.pilot.pilot import Pilot
    from pipeline.pilot.plan import Speed

AROUND = (0.8, 1.0, 1.2)  # of the model's own thresholds, where none are given
_SHOWN = ("worker-hours", "cost", "output")  # of the plan, at the top of the gallery


@options.with_options
def pilot(
    shards: options.Shards,
    model: options.Model,
    segment: options.SegmentOptions,
    samples: Annotated[int, typer.Option(min=1, help="Images, drawn from all shards.")] = 500,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="As label takes it, once for each to compare. Default: cuts of trees; without them the model's "
            "threshold, 20 % less and more.",
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="The gallery; its figures go beside it.")] = "pilot.html",
    price: options.Price = None,
    deadline: options.Deadline = None,
    seed: Annotated[int, typer.Option(help="Decides which images are drawn.")] = 0,
    batch_size: options.BatchSize = None,
    image_key: options.ImageKey = None,
    json: options.Json = False,
) -> None:
    """Label a sample, seen at several cuts or thresholds: a gallery to choose by, and what a whole run would take."""
    from pipeline.config import read_config
    from pipeline.errors import ConfigError
    from pipeline.inputs import count as counting
    from pipeline.inputs.shards import pin
    from pipeline.pilot import plan as planning

    flags = {"batch_size": batch_size, "image_key": image_key, "price": price}
    settings, run = read_config(segment.config, segment.settings(), flags)
    asked = _thresholds(threshold)
    if settings.mode == "quality":
        raise ConfigError("a pilot compares cuts or thresholds, and mode quality has neither: use label --sample")
    planning.plan(counting.Counts({}, exact=True), 0, None, price=run.price, deadline=deadline)  # refuses what is amiss
    if PurePosixPath(output).suffix != ".html":
        raise ConfigError(f"--output is a gallery, a file that ends in .html, got {output}")
    pinned = pin(shards, note=console.note)
    figures = output.removesuffix(".html") + ".json"
    with appearing(output) as page, appearing(figures) as sheet:  # refused before anything is labelled
        backend, size = _load(model, settings, run.batch_size)

        import torch

        from pipeline.pilot.page import write_pilot
        from pipeline.pilot.pilot import pilot
        from pipeline.worker.sample_loader import decode_threads

        trees = backend.config.tree and not asked
        around = [tuple(float(f"{share * tau:.3g}") for tau in backend.config.thresholds) for share in AROUND]
        compared = [] if trees else asked or around
        if trees:
            console.note(f"trees, cut at {backend.config.cut:g} nats and at heights around it")
        for each in compared:
            console.note(
                options.describe(replace(backend.config, tree=False, cut=None, vectors=False, thresholds=each))
            )
        tell = console.seldom()
        made = pilot(
            pinned,
            backend,
            compared,
            samples=samples,
            seed=seed,
            decode_threads=decode_threads(),
            batch_size=size,
            image_key=run.image_key,
            tick=lambda labelled: tell(f"{labelled:,} of {samples:,} images"),
        )
        speed = planning.Speed(images_per_s=made.rates.worker, output_bytes=max(at.output_bytes for at in made.at))
        plan = planning.plan(made.counts, made.input_bytes, speed, price=run.price, deadline=deadline)
        whole = plan_rows(plan, speed, run.price)
        on_gpu = backend.device.type == "cuda"
        device = torch.cuda.get_device_name(backend.device) if on_gpu else "one core of this processor"
        document = {"model": model, "device": device, "seed": seed} | _figures(made, speed)
        document |= {"plan": asdict(plan)}
        sheet.write(json_format.dumps(document, indent=2).encode())
        write_pilot(made, page, backend.files.name, [(name, text) for name, text in whole if name in _SHOWN])
    if json:
        console.say_json(document | {"gallery": output})
        return
    _report(made, f"{model} on {device}")
    console.table("The whole run", ["", ""], whole)
    choice = "the slider shows cuts, of which every run with trees has all" if trees else "choose a threshold"
    console.say(f"{output}: look at it: {choice}; figures for `diffseg plan --pilot` in {figures}")
    console.say(f"next: {_next(shards, model, segment, image_key, made)}")


def _thresholds(given: list[str] | None) -> list[tuple[float, ...]]:
    """The thresholds to compare, without repeats. Raises ConfigError for values that no model could use."""
    from diffseg.config import SegmentConfig
    from pipeline.errors import ConfigError

    given = given or []
    schedules: list[tuple[float, ...]] = []
    for text in given:
        schedules.append(options.schedule(text))
        try:
            SegmentConfig(thresholds=schedules[-1])
        except ValueError as error:
            raise ConfigError(f"--threshold {text!r}: {error}") from error
    if len(given) == 1 and "," in given[0]:  # 0.1.0 compared these numbers; the next release takes them as one schedule
        several = " ".join(f"--threshold {number.strip()}" for number in given[0].split(","))
        raise ConfigError(
            f"--threshold {given[0]} is one schedule, a value an iteration, as `diffseg label` takes it: to compare "
            f"its numbers say {several}; to see that schedule alone say --threshold {given[0]} twice"
        )
    return list(dict.fromkeys(schedules))


def _load(model: str, settings: "SegmentConfig", batch_size: int | None) -> tuple["Backend", int]:
    """Load the model; returns it with its images a pass. On a CPU it has one thread, as in a worker."""
    import torch

    from diffseg.models.load import load
    from diffseg.segmenter import DiffSeg
    from pipeline.worker.device_errors import loading_errors

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with loading_errors():
        backend = load(model, settings)
    return backend, DiffSeg(backend, batch_size).batch_size


def _figures(made: "Pilot", speed: "Speed") -> dict[str, Any]:
    return {
        "images": len(made.samples),
        "statuses": made.statuses,
        "unread": made.unread,
        "images_per_s": speed.images_per_s,
        "output_bytes": speed.output_bytes,
        "stages_images_per_s": asdict(made.rates),
        f"{made.compared}s": [
            {name: value for name, value in asdict(at).items() if value not in (None, ())} for at in made.at
        ],
    }


def _report(made: "Pilot", title: str) -> None:
    shown = [
        [
            at.name,
            f"{at.segments:.1f}, median {at.segments_median:g}",
            f"{at.single:.1%}",
            f"{at.largest:.0%}",
            f"{console.size(at.output_bytes)} an image",
        ]
        for at in made.at
    ]
    columns = [made.compared, "segments an image", "one alone", "largest covers", "labels"]
    console.table(f"{len(made.samples):,} images, {title}", columns, shown)
    rates = made.rates
    threads = f"{rates.decode_threads} threads" if rates.decode_threads > 1 else "one thread"
    stages = {
        "read, from cold": rates.read,
        f"decode, {threads}": rates.decode * rates.decode_threads,
        "model": rates.model,
        "merge, once": rates.merge,
        "encode": rates.encode,
        "all of it": rates.worker,
    }
    rows = [[name, f"{rate:,.2f}"] for name, rate in stages.items() if rate is not None]
    console.table("One worker", ["stage", "images/s"], rows)
    failed = {status: count for status, count in made.statuses.items() if status != "ok"}
    if failed:
        reasons = ", ".join(f"{count:,} {status}" for status, count in sorted(failed.items()))
        console.note(f"{sum(failed.values()):,} of {len(made.samples):,} images have no labels: {reasons}")
    for reason in made.unread[:5]:
        console.note(f"not read: {reason}")


def _next(shards: list[str], model: str, segment: options.SegmentOptions, image_key: str | None, made: "Pilot") -> str:
    """The command that labels all shards with the settings of the pilot."""
    from pipeline.flags import flag

    words = [flag("model", model)]
    if made.compared == "threshold":
        words += [flag("thresholds", made.at[0].thresholds) if len(made.at) == 1 else "--threshold X"]
    words += [f"--config {shlex.quote(str(segment.config))}"] if segment.config else []
    settings = segment.settings() | {"image_key": image_key}
    words += [flag(name, value) for name, value in settings.items() if value is not None]
    return f"diffseg label --output URL {' '.join(words)} {named(shards)}"
