"""`diffseg preview`: a run as one HTML file, to look at and to show."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.gallery.preview import Shown
    from pipeline.run.ledger import Ledger

SAMPLES = 300  # about 15 MB of HTML


@options.with_options
def preview(
    url: options.Run,
    read: options.ReadOptions,
    output: Annotated[
        str | None, typer.Option(help="The HTML file: a path or an fsspec URL. Default: the run's name.html.")
    ] = None,
    where: options.Where = None,
    samples: Annotated[int, typer.Option(min=1, help="Shown at most: worst, best and random.")] = SAMPLES,
    seed: Annotated[int, typer.Option(help="Decides which samples are the random ones.")] = 0,
    title: Annotated[str | None, typer.Option(help="Heading of the page. Default: the run's name.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser, too.")] = False,
    json: options.Json = False,
) -> None:
    """Write a self-contained HTML gallery of a run, finished or not."""
    import webbrowser

    from pipeline.records import CHANGED
    from pipeline.storage.url import protocol_of

    output = output or f"{PurePath(url.rstrip('/')).name or 'run'}.html"
    shown = write_preview(read.open(url), output, samples=samples, seed=seed, title=title, where=where)
    page = _local(output).absolute().as_uri() if protocol_of(output) == "file" else output
    if json:
        console.say_json({"output": output, "shown": shown.items, "samples": shown.samples})
    for reason in shown.without_photo:
        console.note(f"diffseg: labels without their photos: {reason}")
    if not json:
        console.say(f"{output}: {shown.items:,} of {shown.samples:,} samples")
        console.say(f"gallery: {page}")
    if open and not webbrowser.open(page):
        console.note(f"diffseg: no browser can be started here: open {page}")
    if any(CHANGED in reason for reason in shown.without_photo):
        raise typer.Exit(3)


def write_preview(
    ledger: "Ledger",
    output: str,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    title: str | None = None,
    where: str | None = None,
) -> "Shown":
    """Write the gallery of a run to a path or URL; it appears whole.

    Raises ConfigError where there is nothing to show, or no way to write the output.
    """
    from pipeline.datasets.selection import Selection
    from pipeline.gallery.preview import write_page

    with appearing(output) as out:
        return write_page(ledger, out, samples=samples, seed=seed, title=title, selection=Selection(where=where))


@contextmanager
def appearing(output: str) -> Iterator[BinaryIO]:
    """Write a file at a path or URL that appears once it is whole. Raises ConfigError where it cannot be written."""
    from pipeline.storage.object_store import Store
    from pipeline.storage.url import protocol_of

    if protocol_of(output) == "file":
        with _appearing(_local(output)) as out:
            yield out
        return
    folder, _, name = output.rpartition("/")
    page = io.BytesIO()
    yield page
    Store(folder).replace(name, page.getvalue())


def _local(output: str) -> Path:
    return Path(output.removeprefix("file://")).expanduser()


@contextmanager
def _appearing(target: Path) -> Iterator[BinaryIO]:
    from pipeline.errors import ConfigError

    if not target.name:
        raise ConfigError(f"{target}: a folder; give the name of a file in it")
    draft = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as out:
                yield out
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from error
