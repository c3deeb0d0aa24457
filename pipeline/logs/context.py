"""What a thread works on, for whoever reads its log records: run, worker, shard, window.

`concurrency` hands a thread's context on to the threads that it starts.
"""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

LONGEST_OWNER = 64  # characters: it is a label of every metric


@dataclass(frozen=True, slots=True)
class Context:
    """Empty fields are not known, or not one alone. owner: who runs it; node: the machine, as Ray names it."""

    run: str = ""
    model: str = ""
    owner: str = ""
    worker: str = ""
    node: str = ""
    shard: str = ""
    window: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """What tells runs apart, the same for all workers of one."""
        return {"run": self.run, "model": self.model, "owner": self.owner}


_KEPT = "_diffseg_context"  # attribute of an error
_NOTHING = Context()
_context: ContextVar[Context] = ContextVar("context", default=_NOTHING)


def current() -> Context:
    """The context of this thread."""
    return _context.get()


def bind(**fields: object) -> None:
    """Change the context of this thread for good."""
    _context.set(_changed(fields))


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Change the context of this thread while the block runs. An error that leaves it keeps it: see `context_of`."""
    token = _context.set(_changed(fields))
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault(_KEPT, current())
        raise
    finally:
        _context.reset(token)


def context_of(error: BaseException | None) -> Context:
    """The context that an error was raised in, as far as a block said it; else that of this thread."""
    found: Context | None = None
    while error is not None and found is None:
        found, error = error.__dict__.get(_KEPT), error.__cause__
    return found or current()


def _changed(fields: dict[str, object]) -> Context:
    return replace(_context.get(), **{name: str(value) for name, value in fields.items()})


def owner() -> str:
    """Who runs this: as the context has it, or DIFFSEG_OWNER, or the name of the user who is logged in."""
    given = current().owner or os.environ.get("DIFFSEG_OWNER")
    try:
        return (given or getpass.getuser())[:LONGEST_OWNER]
    except (KeyError, OSError):  # a container's user may have a number and no name
        return str(os.getuid())
