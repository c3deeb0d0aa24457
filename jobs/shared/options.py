"""Options that several commands share, declared once: a flag means the same in every command.

A class of options stands for all its flags in the signature of a command that is `with_options`.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from typer import Argument, Option

from jobs.shared import console

if TYPE_CHECKING:
    from diffseg.config import ResolvedConfig
    from diffseg.cut import Cut
    from pipeline.concurrency import ParallelMap
    from pipeline.run.ledger import Ledger

Command = TypeVar("Command", bound=Callable[..., Any])
Run = Annotated[str, Argument(help="The run: the folder or URL given to label --output.")]
Shards = Annotated[list[str], Argument(help="Tar files, globs, braces, or a .txt list of them.")]
Model = Annotated[str, Option(help="tiny, sd1.5, sdxl, ..., a hub id, a folder or an fsspec URL.", show_default=False)]
Json = Annotated[bool, Option("--json", help="One JSON document on stdout.")]
Mode = Annotated[str | None, Option(help="fast (default), quality (by features), or paper, exactly as published.")]
ImageSize = Annotated[int | None, Option(help="Pixels the model sees. Default: its own.")]
Dtype = Annotated[str | None, Option(help="float32, bfloat16 or float16. Default: the model's own.")]
ImageKey = Annotated[str | None, Option(help="Extension of the image in its sample.")]
Price = Annotated[float | None, Option(help="Of one worker's hour (a GPU's), in any currency.")]
Deadline = Annotated[float | None, Option(help="Hours in which the whole run is to be done.")]
Where = Annotated[str | None, Option(help="Rows wanted, such as 'num_segments > 3 and num_segments < 40'.")]
Stall = Annotated[
    float | None, Option(min=2, help="Seconds in which nothing on Ray answers, then it stops. Default: 120.")
]
BatchSize = Annotated[int | None, Option(help="Images a forward pass. Default: found by itself.")]
Names = Annotated[str | None, Option(help="Text file: names for the values 0, 1, ... of --truth, or words.")]
Extend = Annotated[bool, Option("--extend", help="No new fit: take in the windows that the table does not have.")]
ReadInstances = Annotated[
    str | None, Option("--instances", help="Objects: segments, their components, or ridges, which part more.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions:
    """The flags that change labels, with the file that sets them too, as they were typed; None: not given."""

    config: Annotated[Path | None, Option(help="TOML file with [segment] and [run]; flags override it.")] = None
    mode: Mode = None
    threshold: Annotated[
        list[str] | None,
        Option(help="Nats: 0.4, or a schedule, one an iteration: 0.7,0.9,1.1. Default: the model's."),
    ] = None
    timestep: Annotated[int | None, Option(help="Diffusion time, 0..999. Default: the model's own.")] = None
    image_size: ImageSize = None
    output_size: Annotated[
        str | None, Option(help="Longer side of label maps in pixels, or 'source'. Default: 1024.")
    ] = None
    refine: Annotated[bool | None, Option(help="K-means after merging.")] = None
    clusters: Annotated[
        int | None, Option(help="Segments an image, in mode quality. Default: each image's own number.")
    ] = None
    min_area: Annotated[float | None, Option(help="Share of the image; smaller segments are absorbed.")] = None
    edges: Annotated[bool | None, Option(help="Labels end where the picture changes.")] = None
    tree: Annotated[bool | None, Option(help="One hierarchy of segments an image.")] = None
    leaves: Annotated[int | None, Option(help="Of a tree, at most: 2..256. Default: 64.")] = None
    cut: Annotated[float | None, Option(help="Nats: the tree's cut. Default: the model's own.")] = None
    vectors: Annotated[bool | None, Option(help="A vector for each leaf of a tree (default: none).")] = None
    ridges: Annotated[bool | None, Option(help="A byte for each border of leaves, for export --instances ridges.")] = (
        None
    )
    words: Annotated[str | None, Option(help="Text file: names for categories --naming cross-attention.")] = None
    crop_layers: Annotated[int | None, Option(help="1: small objects too, from crops, in ten times the passes.")] = None
    dtype: Dtype = None

    def settings(self) -> dict[str, Any]:
        """The flags by the names of SegmentConfig. Raises ConfigError for what is no number, and several thresholds."""
        from pipeline.errors import ConfigError
        from pipeline.evaluation.truth import read_list

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
        settings |= {"words": tuple(read_list(self.words, "words"))} if self.words else {}
        return settings | ({"output_size": int(size)} if size and size.isdigit() else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOptions:
    """The cut of a run with trees that readers are asked for."""

    cut: Annotated[
        str | None, Option(help="Of a run with trees: the cut at a height in nats, or 'auto', the run's own.")
    ] = None
    segments: Annotated[int | None, Option(help="Of a run with trees: the cut that has so many segments an image.")] = (
        None
    )

    @property
    def at(self) -> "Cut | None":
        """None: the one that was labelled. Raises ConfigError."""
        from diffseg.cut import Cut
        from pipeline.errors import ConfigError

        if self.cut is None and self.segments is None:
            return None
        if self.cut is not None and self.segments is not None:
            raise ConfigError("--cut and --segments ask for two cuts: name one of them")
        try:
            if self.cut == "auto":
                return Cut(auto=True)
            return Cut(height=None if self.cut is None else float(self.cut), segments=self.segments)
        except ValueError as error:
            wrong = f"--cut takes a height in nats or 'auto', got {self.cut!r}" if self.cut else f"--segments: {error}"
            raise ConfigError(wrong) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions(CutOptions):
    """How a run is read: at which cut, and with which derived tables."""

    calibration: Annotated[
        str | None, Option(help="Scores are the IoU that a table of `calibrate` predicts: NAME or NAME/REVISION.")
    ] = None
    categories: Annotated[
        str | None, Option(help="Segments have those of a table of `categories`: NAME or NAME/REVISION.")
    ] = None
    corrections: Annotated[
        str | None, Option(help="By people: NAME, NAME/REVISION or none. Default: the latest, if there are any.")
    ] = None

    def open(self, url: str) -> "Ledger":
        """The run so. Raises ConfigError."""
        from pipeline.derived.joined import open_run

        return open_run(url, self.at, self.calibration, self.categories, self.corrections)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthOptions:
    """Labelled images, and what their values mean."""

    truth: Annotated[
        str | None, Option(help="Shards or a folder with label maps, of some images or of all; or `corrections`.")
    ] = None
    protocol: Annotated[str, Option(help="regions, coco-stuff-27 or cityscapes-27, as published.")] = "regions"
    listed: Annotated[str | None, Option("--list", help="Text file with the keys to use.")] = None
    truth_key: Annotated[str | None, Option(help="Extension of the label map in shards.")] = None
    ignore: Annotated[list[int] | None, Option(help="With regions: values not compared.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """Where a command computes beside this process."""

    processes: Annotated[int, Option(help="Processes that compute, beside this one.", min=0, max=512)] = 0
    ray_address: Annotated[
        str | None, Option(help="A running Ray, or 'local' for a private one, whose CPUs compute.")
    ] = None
    stall: Stall = None

    def map(self) -> "AbstractContextManager[ParallelMap]":
        """See `parallel_mapping`."""
        from pipeline.cluster.parallel import parallel_mapping

        return parallel_mapping(self.processes, self.ray_address, console.note, self.stall)


def with_options(command: Command) -> Command:
    """Replace each parameter that is a class of options by its flags.

    A flag that the command declares itself, with another help text, is not replaced.
    """
    signature, flags = inspect.signature(command), dict[str, list[inspect.Parameter]]()
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        if isinstance(kind := each.annotation, type) and is_dataclass(kind):
            own = inspect.signature(kind).parameters.values()
            flags[each.name] = [one for one in own if one.name not in signature.parameters]
        parameters += flags.get(each.name, [each])

    def run(**given: Any) -> Any:
        for name, own in flags.items():
            values = {each.name: given.pop(each.name) for each in own}
            given[name] = signature.parameters[name].annotation(**values)
        return command(**given)

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


def describe(config: "ResolvedConfig") -> str:
    """How images are parted, as every command prints it before it labels."""
    from pipeline.flags import number

    if config.mode == "quality":
        return f"segments: {config.clusters or 'as many as each image asks for'}"
    if config.tree:
        crops = " and of small objects in crops" if config.crop_layers else ""
        return f"trees of {config.leaves} leaves{crops}, cut at {number(config.cut or 0.0)} nats"
    return f"thresholds {', '.join(map(number, config.thresholds))} (one an iteration)"
