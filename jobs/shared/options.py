"""Options that several commands share, declared once: the same flag means the same everywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Shards = Annotated[list[str], typer.Argument(help="Tar files, globs, braces, or a .txt list of them.")]
Model = Annotated[
    str,
    typer.Option("--model", help="tiny, sd1.5, sdxl, ..., a hub id, a folder or an fsspec URL.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with [segment] and [run]; flags override it.")
]
Mode = Annotated[str | None, typer.Option("--mode", help="fast (default) or paper, exactly as published.")]
Thresholds = Annotated[
    list[str] | None,
    typer.Option("--threshold", help="Nats: 0.4, or a schedule, one an iteration: 0.7,0.9,1.1. Default: the model's."),
]
Timestep = Annotated[int | None, typer.Option("--timestep", help="Diffusion time, 0..999. Default: the model's own.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Pixels the model sees. Default: its own.")]
OutputSize = Annotated[
    str | None, typer.Option("--output-size", help="Longer side of label maps in pixels, or 'source'. Default: 1024.")
]
Refine = Annotated[bool | None, typer.Option("--refine/--no-refine", help="K-means after merging.")]
MinArea = Annotated[float | None, typer.Option("--min-area", help="Share of the image; smaller segments are absorbed.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. Default: the model's own.")]
ImageKey = Annotated[str | None, typer.Option("--image-key", help="Extension of the image in its sample.")]
Price = Annotated[float | None, typer.Option("--price", help="Of one worker's hour (a GPU's), in any currency.")]
Deadline = Annotated[float | None, typer.Option("--deadline", help="Hours in which the whole run is to be done.")]
Stall = Annotated[
    float | None,
    typer.Option("--stall", min=2, help="Seconds in which nothing on Ray answers, then it stops. Default: 120."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images a forward pass. Default: found by itself.")]


def segment_flags(
    *, mode: str | None, thresholds: list[str] | None, output_size: str | None, **plain: Any
) -> dict[str, Any]:
    """Flags as SegmentConfig has them. Raises ConfigError for numbers that are none, and for several thresholds."""
    from pipeline.errors import ConfigError

    flags: dict[str, Any] = {"mode": mode, **plain}
    if thresholds and len(thresholds) > 1:
        raise ConfigError(
            f"--threshold is given {len(thresholds)} times: here it is given once, as one number or as one an "
            "iteration such as 0.7,0.9,1.1; only `diffseg pilot` compares several"
        )
    if thresholds:
        flags["thresholds"] = schedule(thresholds[0])
    if output_size is not None:
        if output_size != "source" and not output_size.isdigit():
            raise ConfigError(f"--output-size takes a number of pixels or 'source', got {output_size!r}")
        flags["output_size"] = output_size if output_size == "source" else int(output_size)
    return flags


def schedule(text: str) -> tuple[float, ...]:
    """A value of --threshold, in nats, one an iteration; a single number counts for all. Raises ConfigError."""
    from pipeline.errors import ConfigError
    from pipeline.flags import ITERATIONS

    try:
        given = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--threshold takes numbers such as 0.4 or 0.7,0.9,1.1, got {text!r}") from error
    return given * ITERATIONS if len(given) == 1 else given


def told(thresholds: Sequence[float]) -> str:
    """A schedule as every command that labels says it at its start."""
    from pipeline.flags import number

    return f"thresholds {', '.join(map(number, thresholds))} (one an iteration)"
