"""`diffseg bench`: how long each stage takes on this machine, and how far that is from what it could do."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.bench.chaos import chaos
from jobs.bench.job import job
from jobs.shared import console, options
from jobs.shared.logged import logged

if TYPE_CHECKING:
    from diffseg.models.load import Backend
    from pipeline.bench.stages import Measured

app = typer.Typer(rich_markup_mode=None)
app.command()(logged(job))
app.command()(logged(chaos))


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="The model to time: a name, hub id, folder or URL.")] = None,
    random_weights: Annotated[
        str | None, typer.Option(help="Time the layout of a named model without its download.")
    ] = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    compile: Annotated[bool, typer.Option("--compile", help="Let torch.compile have the model first.")] = False,
    image_size: options.ImageSize = None,
    mode: options.Mode = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each stage; the median counts.")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU where there is one.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Say how far labels agree with another model's, as with a full encoder's.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Time each stage of labelling an image against the machine's own limit; `job` and `chaos`: the engine."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.config import read_config
    from pipeline.errors import ConfigError
    from pipeline.worker.device_errors import device_errors, loading_errors

    if (model is None) == (random_weights is None):
        raise ConfigError("bench times one model: give --model M, or --random-weights with a name such as sd1.5")
    flags = {"mode": mode, "dtype": dtype, "compile": compile, "image_size": image_size}
    settings, _ = read_config(None, flags, {})
    from diffseg.models.load import load, random_backend
    from pipeline.bench.stages import agreement_with, measure

    with loading_errors():
        backend = load(model, settings, device) if model else random_backend(random_weights or "", settings, device)
    with device_errors():
        measured = measure(backend, batch_size or backend.batch_size(), repeats, structured=model is None)
        agreed = agreement_with(backend, load(against, settings, device)) if against else None
    if json:
        console.say_json(as_dict(backend, measured) | {"against": against, "agreement": agreed})
        return
    show(backend, measured)
    if agreed is not None:
        console.say(f"labels of the demo's photos: {agreed:.2%} of pixels as with {against}, segments paired")


def as_dict(backend: "Backend", measured: "Measured") -> dict[str, Any]:
    """Everything measured, with units in the names."""
    import platform

    import torch

    limits, core = measured.limits, ("aggregate", "tree", "merge", "argmax", "clean", "vectors")  # after capture
    total = sum(stage.seconds for stage in measured.stages if not stage.host)  # the others hide beside the device
    name = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else platform.processor()
    return {
        "model": backend.files.name,
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": backend.config.dtype,
        "compile": backend.config.compile,
        "mode": backend.config.mode,
        "image_size": backend.config.image_size,
        "batch_size": measured.batch_size,
        "images_per_s": 1 / measured.whole,
        "ms_per_image": 1e3 * measured.whole,
        "core_share": sum(stage.seconds for stage in measured.stages if stage.name in core) / total,
        "peak_bytes": measured.peak_bytes,
        "limits": {"model_flop_s": limits.model_flop_s, "core_flop_s": limits.core_flop_s, "byte_s": limits.byte_s},
        "decode_12_megapixels_ms": 1e3 * measured.large_decode,
        "decode_12_megapixels_cores": measured.large_decode / measured.whole,
        "stages": [
            {
                "name": stage.name,
                "ms": 1e3 * stage.seconds,
                "share": None if stage.host else stage.seconds / total,
                "tflop": stage.flop / 1e12,
                "tflop_s": stage.flop / stage.seconds / 1e12 if stage.flop and stage.seconds > 0 else None,
                "times_limit": stage.seconds / least if (least := stage.limit(limits)) else None,
                "cores": stage.seconds / measured.whole if stage.host else None,
            }
            for stage in measured.stages
        ],
    }


def show(backend: "Backend", measured: "Measured") -> None:
    """A table for people."""
    report = as_dict(backend, measured)
    rows = [
        [
            stage["name"],
            f"{stage['ms']:.2f}",
            f"{stage['share']:.1%}" if stage["share"] is not None else f"beside it, {stage['cores']:.2f} cores",
            f"{stage['tflop_s']:.2f}" if stage["tflop_s"] else "",
            f"{stage['times_limit']:.1f} x" if stage["times_limit"] else "",
        ]
        for stage in report["stages"]
    ]
    model, dtype, batch = report["model"], report["dtype"], report["batch_size"]
    title = f"{model}, {dtype}, {report['image_size']} px, batch {batch}, {report['device']}"
    console.table(title, ["stage", "ms an image", "share", "TFLOP/s", "of the limit"], rows)
    limits = measured.limits
    console.say(
        f"limits measured here: {limits.model_flop_s / 1e12:.2f} TFLOP/s in {dtype}, "
        f"{limits.core_flop_s / 1e12:.2f} in the core, {limits.byte_s / 1e9:.1f} GB/s"
    )
    console.say(
        f"pixels to label maps: {report['ms_per_image']:.1f} ms an image, {report['images_per_s']:.2f} images/s; "
        f"peak memory {console.size(measured.peak_bytes)}"
    )
    console.say(
        f"a JPEG of 12 megapixels takes {report['decode_12_megapixels_ms']:.0f} ms of one core: "
        f"{report['decode_12_megapixels_cores']:.2f} cores keep this device busy"
    )
