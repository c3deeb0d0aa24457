"""Where a command's log goes: `--log-file`, `--verbose` and `--owner`, declared once for all commands that work long.

DIFFSEG_LOG=LEVEL shows records of that level and above, as `--verbose` does; DIFFSEG_LOG=LEVEL:PATH writes them to a
file, as `--log-file` does. LEVEL is debug, info, warning or error. A flag says where, and takes the level from there.
"""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from jobs.shared import console

Command = TypeVar("Command", bound=Callable[..., Any])
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}
LogFile = Annotated[Path | None, typer.Option("--log-file", help="Write the log to the end of this file.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr.")]
Owner = Annotated[str | None, typer.Option("--owner", help="In log and metrics. Default: the user's name.")]
logger = logging.getLogger(__name__)


def logged(command: Command) -> Command:
    """The command with these options too; it logs by which error it ends."""

    def run(*args: Any, log_file: LogFile = None, verbose: Verbose = False, owner: Owner = None, **options: Any) -> Any:
        with _log(log_file, verbose, owner):
            return command(*args, **options)

    more = [one for one in inspect.signature(run).parameters.values() if one.kind is one.KEYWORD_ONLY]
    signature = inspect.signature(command)
    functools.update_wrapper(run, command)
    run.__annotations__ = command.__annotations__ | {one.name: one.annotation for one in more}
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *more])
    return run  # type: ignore[return-value]


@contextmanager
def _log(file: Path | None, verbose: bool, owner: str | None) -> Iterator[None]:
    from pipeline.errors import ConfigError, PipelineError
    from pipeline.logs import context
    from pipeline.logs.records import written
    from pipeline.logs.text import told

    name, colon, path = os.environ.get("DIFFSEG_LOG", "").partition(":")
    if (name or colon) and (name.lower() not in LEVELS or (colon and not path)):
        raise ConfigError(f"DIFFSEG_LOG is one of {', '.join(LEVELS)}, alone or with :PATH, not {name}{colon}{path}")
    file = file or (Path(path).expanduser() if path else None)
    shown = verbose or bool(name and not path)
    with context.bound(owner=owner or context.owner()):
        if not (file or shown):
            yield
            return
        with written(LEVELS[name.lower() or "info"], file, console.note_lines, shown=shown):
            try:
                yield
            except PipelineError as error:
                logger.error("stopped: %s", error, exc_info=None if error.expected else error)
                raise
            except Exception as error:
                logger.exception("stopped: %s", told(error))
                raise
            except BaseException as error:  # Ctrl-C, SIGTERM
                logger.warning("stopped: %s", type(error).__name__)
                raise
