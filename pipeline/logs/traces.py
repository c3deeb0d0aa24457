"""An error as text: its traceback, and the line it was raised at. What is secret of the URLs in it is left out."""

import re
import sys
import traceback

from pipeline.searchpath import ROOT

PACKAGES = ("diffseg", "pipeline", "jobs")
TRACEBACK = 4_000  # bytes that are kept: the end, where the error is
TOLD = 250  # characters of an error in one line
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of a terminal; tabs and ends of lines stay
_QUERY = re.compile(r"(\b\w{1,20}://[^\s'\"?]*)\?[^\s'\"]*")
_USER = re.compile(r"(https?://)[^\s'\"/@]*@")


def redacted(text: str) -> str:
    """Text of any origin, without control characters, and without the queries and user names of URLs."""
    return _USER.sub(r"\1", _QUERY.sub(r"\1", _CONTROL.sub(" ", text)))


def traceback_of(error: BaseException) -> str:
    """The end of an error's traceback, after those of its causes as far as there is room."""
    text = redacted("".join(traceback.format_exception(error))[-2 * TRACEBACK :])
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
    text = " ".join(redacted(f"{type(error).__name__}: {error}").split())[:TOLD]
    return f"{text} ({place})" if (place := raised_at(error)) else text


def _short(path: str) -> str:
    """A file by its place below our packages, or those of Python."""
    installed = path.rpartition("site-packages/")[2]
    return installed if installed != path else path.removeprefix(f"{ROOT}/").removeprefix(f"{sys.base_prefix}/lib/")
