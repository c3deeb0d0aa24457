"""`diffseg segment`: single images, to see at once what a model and its thresholds do.

No result replaces another: results of a second photo of one name, or of other thresholds, are numbered.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from unicodedata import normalize

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from diffseg import DiffSeg

logger = logging.getLogger(__name__)


@options.with_options
def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: options.Model,
    segment: options.SegmentOptions,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(),
) -> int:
    """Write a label map (PNG) and an overlay for each image."""
    from pipeline.config import read_config
    from pipeline.errors import ConfigError

    settings, _ = read_config(segment.config, segment.settings(), {})
    photos = _photos(images)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from error
    from diffseg import DiffSeg
    from pipeline.worker.device_errors import loading_errors

    with loading_errors():
        segmenter = DiffSeg.from_pretrained(model, settings)
    console.note(options.describe(segmenter.config))
    results = _Results(output)
    failed = sum(not _segment_one(segmenter, path, results) for path in photos)
    return 3 if failed else 0


def _photos(images: list[Path]) -> list[Path]:
    """The named images without results of this command among them. Raises ConfigError."""
    from pipeline.errors import ConfigError
    from pipeline.inputs import kinds

    for path in images:
        if path.is_dir():
            raise ConfigError(f"{path}: a folder; name its images, for example {path}/*.jpg")
        if not path.is_file():
            raise ConfigError(f"{path}: no such image")
    photos = [path for path in images if not kinds.is_result(path.name)]
    if not photos:
        raise ConfigError(f"{images[0]}: a result of `diffseg segment`, no photo")
    if len(photos) < len(images):
        console.note(f"{len(images) - len(photos):,} results of `diffseg segment` among the images are not labelled")
    return photos


class _Results:
    """The folder of results, in which no existing file is overwritten."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = {_alike(path.name): path.name for path in folder.iterdir()}

    def add(self, stem: str, contents: Mapping[str, bytes]) -> list[Path]:
        """Write files STEM.KIND, or STEM-2.KIND and so on where one of them exists with other bytes. Raises OSError."""
        for number in count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            files = {self._folder / f"{name}.{kind}": data for kind, data in contents.items()}
            if all(self._is_free(path, data) for path, data in files.items()):
                with suppress(FileExistsError):  # another process has just taken the name
                    self._write({path: data for path, data in files.items() if _alike(path.name) not in self._names})
                    return list(files)
        raise AssertionError("numbers do not end")

    def _is_free(self, path: Path, data: bytes) -> bool:
        """Whether a name is unused, even on a disk that ignores case, or its file holds these bytes."""
        known = self._names.get(_alike(path.name))
        return known is None or (known == path.name and path.is_file() and path.read_bytes() == data)

    def _write(self, files: Mapping[Path, bytes]) -> None:
        """Write all files or none."""
        begun = []
        try:
            for path, data in files.items():
                with path.open("xb") as out:
                    begun.append(path)
                    out.write(data)
        except OSError:
            for path in begun:
                path.unlink()
            raise
        self._names |= {_alike(path.name): path.name for path in files}


def _alike(name: str) -> str:
    """A spelling that is equal for names which some disks do not tell apart."""
    return normalize("NFC", name).casefold()


def _segment_one(segmenter: "DiffSeg", path: Path, results: _Results) -> bool:
    """Label an image and print where its results are; False where it could not be labelled."""
    from PIL import Image

    from diffseg import AttentionError
    from diffseg.draw import encoded, overlay
    from pipeline.errors import OutOfMemory
    from pipeline.inputs.decode import UndecodableImage, decode
    from pipeline.table.label_map import encode_label_map
    from pipeline.worker.device_errors import device_errors

    try:
        image = decode(path.read_bytes())
        with device_errors():
            [result] = segmenter.segment([image])
        shown = encoded(Image.fromarray(overlay(image, result.label_map)), "PNG")
        contents = {"labels.png": encode_label_map(result.label_map), "overlay.png": shown}
        label_map, picture = results.add(path.stem, contents)
    except (UndecodableImage, AttentionError, OutOfMemory, OSError) as error:
        logger.debug("%s has no labels", path, exc_info=error)
        console.note(f"diffseg: {path}: {error}")
        return False
    several = result.quality is not None and f"{len(result.segments)} segments, quality {result.quality:.2f}"
    console.say(f"{path}: {several or 'one segment'}: {label_map}, {picture}")
    return True
