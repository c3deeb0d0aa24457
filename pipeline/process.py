"""How a process of ours begins and ends: streams that take any text and outlive whoever reads them, and one exit code.

A command does not end as Python ends. While the interpreter is taken down, native threads go on: Arrow's and torch's
pools, Ray's client, a daemon thread in the middle of a forward pass. One that asks for the interpreter then is unwound
through C++, which aborts: 134 in place of the code. So what has to be tidied up is, while everything still stands, and
then the process leaves at once.
"""

import atexit
import codecs
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from pipeline.logs.text import shown_lines

INTERRUPTED, TERMINATED = 130, 143
UNTOLD = 4  # the result could not be said
TIDYING_S = 10.0  # for what libraries do at the end of a process; then it leaves all the same
_PLAIN = {"█": "#", "±": "+-", "…": "...", "²": "2"}


class Terminated(BaseException):
    """SIGTERM came."""


class Output(io.FileIO):
    """A standard stream. Where nothing can be written to it any more, the rest is dropped and the command goes on.

    lost: why. A reader that has left (`| head -1`) wanted no more; a full disk has lost a result.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Everything is taken."""
        try:
            while (written := super().write(data)) is None:  # somebody who shares it has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = error
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - no path of ours
                os.dup2(nowhere.fileno(), self.fileno())  # libraries write here too
            return memoryview(data).nbytes


def run(command: Callable[[], int | None]) -> NoReturn:
    """Do a command and end this process with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    output, _ = _standard("stdout", 1), _standard("stderr", 2)
    try:
        code = command() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        sys.stderr.write("" if isinstance(error.code, int | None) else f"{error.code}\n")
    except BaseException:  # noqa: BLE001 - a fault of ours: told as Python tells it
        sys.stderr.write(shown_lines(traceback.format_exc()))
        code = 1
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    _leave(_told(code, output))


def any_text() -> None:
    """Let stdout and stderr spell out what their encoding lacks: a name must never end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell_out")


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """What Python does of errors="backslashreplace", with signs of ours in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lacking), error.end


codecs.register_error("spell_out", _spell_out)


def _standard(name: str, number: int) -> Output:
    """Put an `Output` below sys.stdout or sys.stderr. One that was closed when the process began leads nowhere."""
    given = getattr(sys, name)
    if given is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    output = Output(number)
    encoding, by_line = (given.encoding, given.line_buffering or given.write_through) if given else ("utf-8", False)
    buffered = io.BufferedWriter(output)
    setattr(sys, name, io.TextIOWrapper(buffered, encoding=encoding, errors="spell_out", line_buffering=by_line))
    return output


def _told(code: int, output: Output) -> int:
    """The exit code, where all that was said is out of our hands; another one where it could not be said."""
    sys.stdout.flush()
    if output.lost and not isinstance(output.lost, BrokenPipeError):
        sys.stderr.write(f"diffseg: stdout: {output.lost.strerror}: what was to be said there is lost\n")
        code = code or UNTOLD
    sys.stderr.flush()
    return code


def _leave(code: int) -> NoReturn:
    try:
        late = threading.Timer(TIDYING_S, os._exit, [code])
        late.daemon = True
        late.start()
        atexit._run_exitfuncs()  # temporary folders, log files, locks, child processes
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, and so of those that it starts, while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
