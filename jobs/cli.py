"""`diffseg`: the commands, and the one place where an error becomes a line and an exit code.

0 done; 1 `verify` found a fault; 2 usage or configuration; 3 too many failures, or bytes not accounted for; 4 stopped;
130 and 143 interrupted.
"""

import signal
import sys
from typing import Any, NoReturn

import click
import typer

from jobs import console
from jobs.demo import demo
from jobs.label import label
from jobs.preview import preview
from jobs.segment import segment
from jobs.status import status
from jobs.verify import verify

app = typer.Typer(
    name="diffseg",
    help="Segmentation labels for millions of images, from the self-attention of a diffusion model.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (demo, label, status, verify, segment, preview):
    app.command()(command)


def main() -> NoReturn:
    """Run a command and end the process as its exit code says."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; every error a person can cause is one line on stderr."""
    from pipeline.errors import ConfigError, PipelineError, Stopped

    try:
        code = app(arguments, standalone_mode=False, prog_name="diffseg")
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        console.say(error.ctx.get_help())
        return 0
    except click.ClickException as error:
        console.note(f"diffseg: {error.format_message()}")
        return 2
    except (KeyboardInterrupt, click.Abort):
        console.note("diffseg: interrupted; the same command resumes")
        return 130
    except ConfigError as error:
        console.note(f"diffseg: {error}")
        return 2
    except Stopped as error:
        console.note(f"diffseg: stopped: {error}; the same command resumes")
        return 4
    except PipelineError as error:
        console.note(f"diffseg: {error}")
        return 4
    except BrokenPipeError:
        return 0


def _terminated(*_: Any) -> None:
    console.note("diffseg: terminated; the same command resumes")
    raise SystemExit(143)
