"""An error as text: its traceback, and the line it was raised at. What is secret of the URLs in it is left out."""

import sys
import traceback

from pipeline.logs.text import shown, shown_lines
from pipeline.searchpath import ROOT

PACKAGES = ("diffseg", "pipeline", "jobs")
TRACEBACK = 4_000  # bytes that are kept: the end, where the error is
TOLD = 250  # characters of an error in one line


def traceback_of(error: BaseException) -> str:
    """The end of an error's traceback, after those of its causes as far as there is room."""
    text = shown_lines("".join(traceback.format_exception(error))[-2 * TRACEBACK :])
    return text.encode("utf-8", "backslashreplace")[-TRACEBACK:].decode(errors="ignore").strip()


def raised_at(error: BaseException) -> str:
    """Where an error was raised first, as file:line: our innermost line, then a library's below it where that raised.

    Empty for an error that was raised in another process.
    """
    while (cause := error.__cause__) is not None and cause.__traceback__:
        error = cause
    frames = [(_short(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame[0].split("/")[0] in PACKAGES]
    return " > ".join(f"{path}:{line}" for path, line in dict.fromkeys([*ours[-1:], *frames[-1:]]))


def told(error: BaseException) -> str:
    """An error in one line: its class, what it says, where it was raised."""
    text = shown(" ".join(f"{type(error).__name__}: {error}".split()))[:TOLD]
    return f"{text} ({place})" if (place := raised_at(error)) else text


def _short(path: str) -> str:
    """A file by its place below our packages, or those of Python."""
    installed = path.rpartition("site-packages/")[2]
    return installed if installed != path else path.removeprefix(f"{ROOT}/").removeprefix(f"{sys.base_prefix}/lib/")
