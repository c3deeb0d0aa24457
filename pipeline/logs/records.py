"""Log records of a run, from the thread that makes one to the driver's log.

A module that can fail has a `logging.getLogger(__name__)`. A worker's process keeps what is logged there (`collect`)
until the driver asks for it; the driver logs it again under the same names (`replay`), and puts all records into one
file and on the terminal (`written`). On both sides records of one kind are counted where they come often.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic

from pipeline.errors import ConfigError
from pipeline.logs.context import Context, context_of
from pipeline.logs.text import PACKAGES, raised_at, shown, shown_lines, traceback_of

LONGEST = 1_000  # characters of a message
KEPT = 5  # records of one kind that a period may have; more are counted
PERIOD_S = 60.0  # after which the driver says how many were counted
WORKER_PERIOD_S = 15.0  # the same of a worker
KINDS, OTHERS = 256, "others"  # told apart at once; what all further ones are counted as
MOST = 50  # records that a worker hands over at once

for _package in PACKAGES:  # else Python writes to stderr what nobody asked for
    logging.getLogger(_package).addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it travels and is written.

    kind: the same for records that come from one line, with errors raised at one line. repeated: how many of its kind
    it stands for, where it is not one alone.
    """

    at: float  # seconds since 1970
    level: int
    logger: str
    line: int
    message: str
    kind: str
    context: Context
    traceback: str = ""
    repeated: int = 0

    def __str__(self) -> str:
        """Time, level, run, worker, node, shard/window, module:line, message, each in its place; then the traceback."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        its = self.context
        where = (its.run, its.worker, its.node[:12], f"{its.shard}/{its.window}" if its.window else its.shard)
        fields = " ".join((field or "-").replace(" ", "-") for field in where)
        times = f" (repeated {self.repeated} times)" if self.repeated else ""
        line = f"{at} {logging.getLevelName(self.level)} {fields} {self.logger}:{self.line} {self.message}{times}"
        return f"{shown(line)}\n{shown_lines(self.traceback)}" if self.traceback else shown(line)


def _kind_of(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    raised = f" {type(error).__name__} {raised_at(error)}" if error else ""
    return f"{record.levelno} {record.name}:{record.lineno}{raised}"


def _made(record: logging.LogRecord) -> Record:
    error = record.exc_info[1] if record.exc_info else None
    return Record(
        at=record.created,
        level=record.levelno,
        logger=record.name,
        line=record.lineno,
        message=shown(" ".join(record.getMessage()[: 2 * LONGEST].split()))[:LONGEST],
        kind=_kind_of(record),
        context=context_of(error),
        traceback=traceback_of(error) if error else "",
    )


@dataclass(slots=True)
class _Kind:
    since: float
    kept: int = 0
    counted: int = 0
    example: Record | None = None  # of those that were counted


class Counting(logging.Handler):
    """Hands on the first few records of each kind in a period, and after it how many more there were.

    has_room: whether another can be handed on now; else it is counted too.
    """

    def __init__(
        self, write: Callable[[Record], None], period_s: float = PERIOD_S, has_room: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__()
        self._write, self._period_s, self._has_room = write, period_s, has_room
        self._kinds: dict[str, _Kind] = {}  # in the order in which their periods began

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record in: of this thread, or one that `replay` has brought. The handler's lock is held."""
        try:
            self._take(record, getattr(record, "carried", None))
        except Exception:  # noqa: BLE001 - what is wrong with a record must not end the work that it tells of
            self.handleError(record)

    def _take(self, record: logging.LogRecord, carried: Record | None) -> None:
        self._tell(now := monotonic())
        name = carried.kind if carried else _kind_of(record)
        if len(self._kinds) >= KINDS and name not in self._kinds:
            name = OTHERS
        kind = self._kinds.setdefault(name, _Kind(now))
        if kind.kept < KEPT and self._has_room():
            kind.kept += 1
            self._write(carried or _made(record))
        else:
            kind.counted += (carried and carried.repeated) or 1
            kind.example = kind.example or carried or _made(record)

    def tell(self, *, last: bool = False) -> None:
        """Hand on what was counted in periods that are over; last: in all."""
        self.acquire()
        try:
            self._tell(float("inf") if last else monotonic())
        finally:
            self.release()

    def _tell(self, now: float) -> None:
        while self._kinds and self._has_room():
            name, kind = next(iter(self._kinds.items()))
            if now < kind.since + self._period_s:
                return
            del self._kinds[name]
            if kind.example and kind.counted == 1:
                self._write(kind.example)
            elif kind.example:
                self._write(replace(kind.example, repeated=kind.counted, traceback=""))


class Buffer(Counting):
    """What a process has logged and not yet handed over."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        super().__init__(self._records.append, WORKER_PERIOD_S, lambda: len(self._records) < MOST)

    def take(self) -> tuple[Record, ...]:
        """Hand it over."""
        self.tell()
        self.acquire()
        try:
            taken = tuple(self._records)
            self._records.clear()
        finally:
            self.release()
        return taken


def collect(level: int) -> Buffer:
    """From now on keep what this process logs at this level and above, for another process."""
    buffer = Buffer()
    for logger in map(logging.getLogger, PACKAGES):
        logger.addHandler(buffer)
        logger.setLevel(level)
    return buffer


@cache
def own_log() -> Buffer:
    """What this process has logged at level warning and above since the first call."""
    return collect(logging.WARNING)


def level() -> int:
    """The least level that anybody listens to in this process."""
    return logging.getLogger(PACKAGES[1]).getEffectiveLevel()


def replay(records: Iterable[Record], **known: str) -> None:
    """Log what another process has logged. known: what is known here of its context."""
    for record in records:
        carried = replace(record, context=replace(record.context, **known))
        logger = logging.getLogger(record.logger)
        if logger.isEnabledFor(record.level):
            logger.handle(_as_standard(carried))


def _as_standard(record: Record) -> logging.LogRecord:
    """For handlers that are not ours, of a program that uses these packages."""
    module = record.logger.rpartition(".")[2]
    made = logging.LogRecord(record.logger, record.level, f"{module}.py", record.line, record.message, None, None)
    made.created, made.exc_text = record.at, record.traceback or None
    made.__dict__["carried"] = record
    return made


@contextmanager
def written(level: int, path: Path | None, note: Callable[[str], None], *, shown: bool) -> Iterator[None]:
    """While the block runs, write records of this level and above to the end of a file, where one is named.

    note: shows a person a line; shown: those of records too. Raises ConfigError where the file cannot be written. A
    disk that fills up later ends no run; that lines are missing is said at the end.
    """
    try:
        file = path.open("ab", buffering=0) if path else None
    except OSError as error:
        raise ConfigError(f"the log file {path} cannot be written: {error.strerror}") from error
    lost: list[OSError] = []

    def write(record: Record) -> None:
        if shown:
            note(str(record))
        try:
            if file and not lost:
                file.write(f"{record}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            lost.append(error)

    handler, loggers = Counting(write), [logging.getLogger(package) for package in PACKAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        handler.tell(last=True)
        for logger, was in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(was)
        if file:
            file.close()
        if lost:
            note(f"diffseg: the log file {path} is not whole: {lost[0].strerror}")
