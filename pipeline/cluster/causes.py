"""The cause of a failure on Ray, in one line.

Ray's messages begin with what is true of every failure, contain whole tracebacks and lists of processes, and have the
cause at their end, or before general advice.
"""

import re

LONGEST = 400  # characters of a line
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'\s+(File "[^"]*", line \d+.*|[\^~]+)$')
_DETAIL = re.compile(r".*Worker exit detail: (.*?)(Some common causes|There are some potential root causes|$)")
_HEADING = re.compile(
    r"The actor died (unexpectedly|because of an error)|The actor never ran|Failed to set up|Could not|"
    r".*worker startup repeatedly failed\.$"
)
_PLACE = re.compile(r" \(IP: [^)]*\)")
_OURS = re.compile(r"No module named '(diffseg|pipeline|jobs)\b")


def cause(error: BaseException) -> str:
    """The innermost cause in an error of Ray."""
    text = str(error)
    return raised(text) or _short(f"{type(error).__name__}: {_specific(_lines(text))}")


def last_words(text: str) -> str:
    """Why a process ended, from its output; empty where it wrote nothing."""
    return raised(text) or _short((_lines(text) or [""])[-1])


def raised(text: str) -> str:
    """The first line of the exception that the last traceback in a text ends with; empty where there is none."""
    lines = _lines(text)
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    after = lines[frames[-1] + 1 :] if frames else []
    exception = next((line for line in after if not line[0].isspace()), "")
    if _OURS.search(exception):
        exception += ": this project is not installed there, or something else has its name"
    return _short(exception)


def _specific(lines: list[str]) -> str:
    """The cause in a message without a traceback: how a process ended, or the one line that is specific."""
    for line in lines:
        if detail := _DETAIL.match(line):
            return detail[1] + ("(killed, crashed, or out of memory)" if detail[2] else "")
    plain = [line for line in lines if not line[0].isspace()] or [""]
    telling = [line for line in plain if not _HEADING.match(line)] or plain
    return _PLACE.sub("", telling[-1] if _HEADING.match(plain[0]) else telling[0])


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]


def _short(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
