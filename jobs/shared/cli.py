"""`diffseg`: the commands, and the one place where an error becomes a line and an exit code.

0 done; 1 `verify` found a fault; 2 usage or configuration; 3 too many failures, or bytes not accounted for; 4 stopped;
130 and 143 interrupted.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer

from jobs.shared import console
from jobs.shared.logged import logged
from pipeline import process

COMMANDS = (
    *("demo", "pilot", "plan", "label", "status", "verify", "segment", "preview", "evaluate", "export", "compact"),
    *("withdraw", "calibrate", "categories", "select", "take", "fetch"),
)
CALLED = {"take": "import"}  # a word of the language, which no module can be called
BRIEF = ("status",)  # which have no log
app = typer.Typer(
    name="diffseg",
    help="Segmentation labels for millions of images, from the self-attention of a diffusion model.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:  # by name: shared code must not import commands
    function = getattr(import_module(f"jobs.{command}"), command)
    app.command(CALLED.get(command))(function if command in BRIEF else logged(function))
app.add_typer(import_module("jobs.bench.stages").app, name="bench")


RESUMING = ("demo", "label", "export", "compact", "fetch")  # called again, these do only what is missing
UsageError: Any = typer.BadParameter.__base__  # typer exports only subclasses, and hides the click it is built on


def main() -> NoReturn:
    """Run a command and end the process as its exit code says."""
    process.run(lambda: run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; every error a person can cause is one line on stderr."""
    from pipeline.errors import ConfigError, NoWorker, PipelineError

    process.any_text()
    group = typer.main.get_command(app)
    try:  # not through `app()`: typer ends the process with 1, without a word, when any connection breaks
        with group.make_context("diffseg", list(arguments)) as context:
            return int(group.invoke(context) or 0)
    except typer.Exit as error:
        return error.exit_code
    except UsageError as error:
        bare = type(error).__name__ == "NoArgsIsHelpError"
        console.note_lines(error.format_message() if bare else f"diffseg: {_line(error.format_message())}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console.note(f"diffseg: interrupted{_resumes(arguments)}")
        return process.INTERRUPTED
    except process.Terminated:
        console.note(f"diffseg: terminated{_resumes(arguments)}")
        return process.TERMINATED
    except ConfigError as error:
        console.note(f"diffseg: {_line(error)}")
        return 2
    except FileNotFoundError as error:
        if "temporary directory" not in str(error):
            raise
        console.note(f"diffseg: {error.strerror}: set TMPDIR to a folder that can be written to")
        return 2
    except PipelineError as error:
        resumes = _resumes(arguments) if error.resumable else ""
        console.note(f"diffseg: stopped: {_line(error)}{resumes}")
        if resumes and (mark := os.environ.get("DIFFSEG_RESUMES")):  # a job asks whether to start over: infra/job.sh
            Path(mark).touch()
        return 2 if isinstance(error, NoWorker) and error.given else 4


def _resumes(arguments: list[str]) -> str:
    resuming = set(arguments[:1]) & set(RESUMING) or any(each.startswith("--reproduce") for each in arguments)
    return "; the same command resumes" if resuming else ""


def _line(error: Exception | str) -> str:
    """An error's message in one line; that of a library may have several."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


if __name__ == "__main__":
    main()
