"""Output of commands: lines on a terminal, and JSON for programs. No other file prints."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.logs.text import redacted, shown, shown_lines

if TYPE_CHECKING:
    from pipeline.driver.progress import Snapshot

LEFT_OUT = 5  # images that are named
PLAIN_LINE_S = 10.0  # seconds between two lines of progress where there is no terminal

_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(line: str) -> None:
    """Print a line of the result on stdout."""
    _out.print(shown(line), markup=False)


def say_lines(text: str) -> None:
    """Print lines of the result on stdout."""
    _out.print(shown_lines(text), markup=False)


def say_json(value: Any) -> None:
    """Print the result on stdout as one JSON document."""
    text = json.dumps(_without_nan(value), indent=2, default=str)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def _without_nan(value: Any) -> Any:
    """A value in which what is undefined is null, for JSON has no NaN, and texts tell no secret."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, str):
        return redacted(value)
    return None if isinstance(value, float) and isnan(value) else value


def note(line: str) -> None:
    """Print a line about the work on stderr, so that a pipe gets the result alone."""
    _err.print(shown(line), markup=False)


def note_lines(text: str) -> None:
    """Print lines about the work on stderr."""
    _err.print(shown_lines(text), markup=False)


def left_out(images: Sequence[str]) -> None:
    """Print why images were left out, on stderr: the first few, and how many there are beside them."""
    for line in images[:LEFT_OUT]:
        note(f"left out: {line}")
    if len(images) > LEFT_OUT:
        note(f"left out: {len(images) - LEFT_OUT:,} images more")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table of the result on stdout."""
    drawn = Table(*columns, title=Text(shown(title), "table.title"), title_justify="left", show_header=any(columns))
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    _out.print(drawn)


def duration(seconds: float | None) -> str:
    """Seconds in hours, minutes and seconds, for people."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """Bytes as a person says them. Not rich.filesize: it would write 512.0 MB and 12 bytes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def progress_line(snapshot: "Snapshot") -> str:
    """The progress of a run in one line."""
    if not snapshot.labelled:
        return "starting workers"
    failed = sum(snapshot.failed.values())
    parts = [f"{snapshot.labelled:,} labelled", f"{snapshot.rows:,} committed"]
    parts += [f"{snapshot.images_per_s:.1f} images/s", f"{duration(snapshot.eta_s)} left"]
    parts += [f"{failed:,} failed"]
    parts += [f"{snapshot.lost_workers} workers lost"] if snapshot.lost_workers else []
    parts += [f"{snapshot.retries:,} requests retried"] if snapshot.retries else []
    parts += [f"{snapshot.shards_broken} shards broken"] if snapshot.shards_broken else []
    return " | ".join(parts)


def seldom() -> Callable[[str], None]:
    """A `note` that prints a line every few seconds, and drops those between."""
    due = monotonic() + PLAIN_LINE_S

    def tell(line: str) -> None:
        nonlocal due
        if monotonic() >= due:
            due = monotonic() + PLAIN_LINE_S
            note(line)

    return tell


@contextmanager
def progress() -> Iterator[Callable[["Snapshot"], None]]:
    """A live line on a terminal, else a line every few seconds. Yields the function that shows progress."""
    if _err.is_terminal:
        with Live(Text("starting workers"), console=_err, transient=True, refresh_per_second=4) as live:
            yield lambda snapshot: live.update(Text(progress_line(snapshot)))
        return
    tell = seldom()
    yield lambda snapshot: tell(progress_line(snapshot))
