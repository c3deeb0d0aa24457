"""`diffseg segment`: single images, to see at once what a model and its thresholds do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import console, options

if TYPE_CHECKING:
    from diffseg import DiffSeg


def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")] = Path(),
    config: options.ConfigFile = None,
    mode: options.Mode = None,
    threshold: options.Thresholds = None,
    timestep: options.Timestep = None,
    image_size: options.ImageSize = None,
    output_size: options.OutputSize = None,
    refine: options.Refine = None,
    min_area: options.MinArea = None,
    dtype: options.Dtype = None,
) -> int:
    """Write a label map (PNG) and an overlay for each image."""
    from pipeline.config import read_config
    from pipeline.errors import ConfigError

    flags = options.segment_flags(
        mode=mode,
        thresholds=threshold,
        output_size=output_size,
        timestep=timestep,
        image_size=image_size,
        refine=refine,
        min_area=min_area,
        dtype=dtype,
    )
    settings, _ = read_config(config, flags, {})
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such image")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from error
    from diffseg import DiffSeg

    try:
        segmenter = DiffSeg.from_pretrained(model, settings)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    console.note(options.told(segmenter.config.thresholds))
    failed = sum(not _segment_one(segmenter, path, output) for path in images)
    return 3 if failed else 0


def _segment_one(segmenter: "DiffSeg", path: Path, output: Path) -> bool:
    """Label one image and say where the result is; False where it could not be."""
    from PIL import Image

    from diffseg import AttentionError
    from diffseg.draw import overlay
    from pipeline.images import UndecodableImage, decode, encode_label_map

    try:
        image = decode(path.read_bytes())
        [result] = segmenter.segment([image])
    except (UndecodableImage, AttentionError) as error:
        console.note(f"diffseg: {path}: {error}")
        return False
    label_map, picture = output / f"{path.stem}.labels.png", output / f"{path.stem}.overlay.png"
    label_map.write_bytes(encode_label_map(result.label_map))
    Image.fromarray(overlay(image, result.label_map)).save(picture)
    console.say(f"{path}: {len(result.segments)} segments, quality {result.quality:.2f}: {label_map}, {picture}")
    return True
