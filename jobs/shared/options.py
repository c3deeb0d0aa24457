"""Options that several commands share, declared once: a flag means the same in every command."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from diffseg.config import ResolvedConfig
    from diffseg.cut import Cut

Command = TypeVar("Command", bound=Callable[..., Any])
Shards = Annotated[list[str], typer.Argument(help="Tar files, globs, braces, or a .txt list of them.")]
Model = Annotated[
    str,
    typer.Option("--model", help="tiny, sd1.5, sdxl, ..., a hub id, a folder or an fsspec URL.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with [segment] and [run]; flags override it.")
]
Mode = Annotated[
    str | None, typer.Option("--mode", help="fast (default), quality (by features), or paper, exactly as published.")
]
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
Clusters = Annotated[
    int | None, typer.Option("--clusters", help="Segments an image, in mode quality. Default: each image's own number.")
]
MinArea = Annotated[float | None, typer.Option("--min-area", help="Share of the image; smaller segments are absorbed.")]
Edges = Annotated[bool | None, typer.Option("--edges/--no-edges", help="Labels end where the picture changes.")]
Tree = Annotated[bool | None, typer.Option("--tree/--no-tree", help="One hierarchy of segments an image.")]
Leaves = Annotated[int | None, typer.Option("--leaves", help="Of a tree, at most: 2..256. Default: 64.")]
Height = Annotated[float | None, typer.Option("--cut", help="Nats: the tree's cut. Default: the model's own.")]
Vectors = Annotated[
    bool | None, typer.Option("--vectors/--no-vectors", help="A vector for each leaf of a tree (default: none).")
]
Ridges = Annotated[
    bool | None,
    typer.Option("--ridges/--no-ridges", help="A byte for each border of leaves, for export --instances ridges."),
]
CropLayers = Annotated[
    int | None, typer.Option("--crop-layers", help="1: small objects too, from crops, in ten times the passes.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. Default: the model's own.")]
ImageKey = Annotated[str | None, typer.Option("--image-key", help="Extension of the image in its sample.")]
Price = Annotated[float | None, typer.Option("--price", help="Of one worker's hour (a GPU's), in any currency.")]
Deadline = Annotated[float | None, typer.Option("--deadline", help="Hours in which the whole run is to be done.")]
Stall = Annotated[
    float | None,
    typer.Option("--stall", min=2, help="Seconds in which nothing on Ray answers, then it stops. Default: 120."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images a forward pass. Default: found by itself.")]


ReadCut = Annotated[
    str | None,
    typer.Option("--cut", help="Of a run with trees: the cut at a height in nats, or 'auto', the run's own."),
]
ReadSegments = Annotated[
    int | None, typer.Option("--segments", help="Of a run with trees: the cut that has so many segments an image.")
]
ReadCalibration = Annotated[
    str | None,
    typer.Option(
        "--calibration", help="Scores are the IoU that a table of `calibrate` predicts: NAME or NAME/REVISION."
    ),
]
Truth = Annotated[
    str | None, typer.Option("--truth", help="Shards or a folder with label maps, of some images or of all.")
]
Protocol = Annotated[str, typer.Option("--protocol", help="regions, coco-stuff-27 or cityscapes-27, as published.")]
Names = Annotated[
    str | None, typer.Option("--names", help="Text file: names for the values 0, 1, ... of --truth, or words.")
]
Listed = Annotated[str | None, typer.Option("--list", help="Text file with the keys to use.")]
TruthKey = Annotated[str | None, typer.Option("--truth-key", help="Extension of the label map in shards.")]
Ignore = Annotated[list[int] | None, typer.Option("--ignore", help="With regions: values not compared.")]
Extend = Annotated[bool, typer.Option("--extend", help="No new fit: take in the windows that the table does not have.")]
Processes = Annotated[int, typer.Option("--processes", help="Processes that compute, beside this one.", min=0)]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="A running Ray, or 'local' for a private one, whose CPUs compute."),
]
ReadInstances = Annotated[
    str | None, typer.Option("--instances", help="Objects: segments, their components, or ridges, which part more.")
]
ReadCategories = Annotated[
    str | None,
    typer.Option("--categories", help="Segments have those of a table of `categories`: NAME or NAME/REVISION."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions:
    """The flags that change labels, with the file that sets them too, as they were typed; None: not given."""

    config: ConfigFile = None
    mode: Mode = None
    threshold: Thresholds = None
    timestep: Timestep = None
    image_size: ImageSize = None
    output_size: OutputSize = None
    refine: Refine = None
    clusters: Clusters = None
    min_area: MinArea = None
    edges: Edges = None
    tree: Tree = None
    leaves: Leaves = None
    cut: Height = None
    vectors: Vectors = None
    ridges: Ridges = None
    crop_layers: CropLayers = None
    dtype: Dtype = None

    def settings(self) -> dict[str, Any]:
        """The flags by the names of SegmentConfig. Raises ConfigError for what is no number, and several thresholds."""
        from pipeline.errors import ConfigError

        settings = asdict(self)
        del settings["config"]
        thresholds, size = settings.pop("threshold") or [], self.output_size
        if len(thresholds) > 1:
            raise ConfigError(
                f"--threshold is given {len(thresholds)} times: here it is given once, as one number or as one an "
                "iteration such as 0.7,0.9,1.1; only `diffseg pilot` compares several"
            )
        if size is not None and size != "source" and not size.isdigit():
            raise ConfigError(f"--output-size takes a number of pixels or 'source', got {size!r}")
        settings |= {"thresholds": schedule(thresholds[0])} if thresholds else {}
        return settings | ({"output_size": int(size)} if size and size.isdigit() else {})


def with_segment_options(command: Command) -> Command:
    """Replace a command's parameter `segment` by every flag of SegmentOptions.

    A flag that the command declares itself, with another help text, is not replaced.
    """
    signature, shared = inspect.signature(command), inspect.signature(SegmentOptions).parameters
    names = [name for name in shared if name not in signature.parameters]

    def run(**given: Any) -> Any:
        return command(segment=SegmentOptions(**{name: given.pop(name) for name in names}), **given)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += [shared[name] for name in names] if parameter.name == "segment" else [parameter]
    functools.update_wrapper(run, command)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in parameters]
    vars(run)["__signature__"] = signature.replace(parameters=keywords)
    return run  # type: ignore[return-value]


def schedule(text: str) -> tuple[float, ...]:
    """Parse a value of --threshold, in nats, one an iteration; a single number counts for all. Raises ConfigError."""
    from pipeline.errors import ConfigError
    from pipeline.flags import ITERATIONS

    try:
        given = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--threshold takes numbers such as 0.4 or 0.7,0.9,1.1, got {text!r}") from error
    return given * ITERATIONS if len(given) == 1 else given


def cut_of(cut: str | None, segments: int | None) -> "Cut | None":
    """The cut that readers are asked for; None: the one that was labelled. Raises ConfigError."""
    from diffseg.cut import Cut
    from pipeline.errors import ConfigError

    if cut is None and segments is None:
        return None
    if cut is not None and segments is not None:
        raise ConfigError("--cut and --segments ask for two cuts: name one of them")
    try:
        if cut == "auto":
            return Cut(auto=True)
        return Cut(height=None if cut is None else float(cut), segments=segments)
    except ValueError as error:
        raise ConfigError(
            f"--cut takes a height in nats or 'auto', got {cut!r}" if cut else f"--segments: {error}"
        ) from error


def describe(config: "ResolvedConfig") -> str:
    """How images are parted, as every command prints it before it labels."""
    from pipeline.flags import number

    if config.mode == "quality":
        return f"segments: {config.clusters or 'as many as each image asks for'}"
    if config.tree:
        crops = " and of small objects in crops" if config.crop_layers else ""
        return f"trees of {config.leaves} leaves{crops}, cut at {number(config.cut or 0.0)} nats"
    return f"thresholds {', '.join(map(number, config.thresholds))} (one an iteration)"
