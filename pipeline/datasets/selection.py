"""Selection of rows and segments of a run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError
from pipeline.records import OK, WITHDRAWN
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import unit_hash
from pipeline.table.filter import (
    CATEGORIES,
    COLUMNS,
    KEPT,
    PREDICTED,
    Condition,
    columns_of,
    either,
    is_not,
    parse_filter,
)

TRAIN, VAL = "train", "val"
NOT_ASKED = "not asked for"
WANTED = (*dict.fromkeys((*COLUMNS, "label_map", "segments", "image_sha256", KEPT)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows and segments are wanted. Raises ConfigError for values that make no sense."""

    where: str | None = None  # see pipeline.table.filter
    min_area: float = 0.0  # of the image, in [0, 1)
    min_score: float = 0.0  # in [0, 1]
    limit: int | None = None  # samples
    split: float | None = None  # share of the keys that go to `train`; the others go to `val`
    among: frozenset[tuple[str, int]] | None = None  # only these rows, by shard and index

    def __post_init__(self) -> None:
        if not 0 <= self.min_area < 1:
            raise ConfigError(f"--min-area is a share of the image in [0, 1), got {self.min_area}")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"--min-score lies in [0, 1], got {self.min_score}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is a number of images, at least 1, got {self.limit}")
        if self.split is not None and not 0 < self.split < 1:
            raise ConfigError(f"--split is the share of `train`, between 0 and 1, got {self.split}")
        if self.where is not None:
            parse_filter(self.where)

    @property
    def condition(self) -> Condition | None:
        """The filter by which rows are read: selected rows, and rows without labels, which are counted."""
        if self.where is None:
            return None
        return either(is_not("status", OK), parse_filter(self.where))

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether a row that the filter took is among those wanted, by its shard and index."""
        return self.among is None or (row["shard"], row["index"]) in self.among

    def windows(self, ledger: Ledger) -> list[WindowObject]:
        """The windows of a ledger in which rows are wanted."""
        wanted = {(shard, index // ledger.run.window) for shard, index in self.among or ()}
        return [each for each in ledger.windows() if self.among is None or (each.shard, each.window) in wanted]

    def check(self, ledger: Ledger, *, drawn: bool = False) -> None:
        """Raises ConfigError where the filter reads what is not known of the ledger's rows.

        drawn: their cuts are drawn at random.
        """
        read = columns_of(self.condition) if self.condition else set()
        if KEPT in read and not ledger.run.keep:
            raise ConfigError(f"--where reads {KEPT}, and {ledger} was labelled without --keep")
        for column, table in ((PREDICTED, "calibration"), (CATEGORIES, "categories")):
            if column in read and not getattr(ledger, table):
                raise ConfigError(f"--where reads {column}, which only a derived table has: name it with --{table}")
        of_table = (
            "a calibration is" if ledger.calibration else "a table of categories is" if ledger.categories else None
        )
        if drawn and (read & ledger.remade or of_table):
            what = of_table or f"{', '.join(sorted(read & ledger.remade))}: they are"
            raise ConfigError(f"{what} of one cut, and cut=(low, high) draws others: leave out one of them")

    def side(self, key: str) -> str:
        """`train` or `val`, by the key alone: stable over runs, exports and machines."""
        return TRAIN if self.split is None or unit_hash(key) < self.split else VAL


@dataclass(slots=True)
class RowCounts:
    """Counts of an export. rows: read; images: selected; left_out: rows by reason."""

    rows: int = 0
    images: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, rows: int = 1) -> None:
        """Count rows that are not selected."""
        if rows:
            self.left_out[reason] += rows

    def add(self, other: "RowCounts") -> None:
        """Add the counts of another part."""
        self.rows, self.images = self.rows + other.rows, self.images + other.images
        self.left_out.update(other.left_out)


@dataclass(frozen=True, slots=True)
class Part:
    """Whole windows that are exported together.

    starts: for each window, the rows of the run before it. rows: of all of them. limit: images at most; None: all.
    """

    number: int
    windows: tuple[WindowObject, ...]
    starts: tuple[int, ...]
    rows: int
    limit: int | None = None


def chosen_rows(
    ledger: Ledger, selection: Selection, part: Part, tally: RowCounts, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted rows of a part, uncut, each with its number in the run from 1 on; counted as they come."""
    window = ledger.run.window
    starts = {(at.shard, at.window): start for at, start in zip(part.windows, part.starts, strict=True)}
    seen, absent = part.starts[0], NOT_ASKED + f" or {WITHDRAWN}" * bool(ledger.withdrawn)
    wanted = list({*columns, "key", "shard", "index", "status"})
    for row in ledger.rows(wanted, windows=part.windows, filter=selection.condition, uncut=True):
        if not selection.wants(row):
            continue
        number_of_window, within = divmod(row["index"], window)
        number = starts[row["shard"], number_of_window] + within + 1
        tally.leave_out(absent, number - seen - 1)
        tally.rows, seen = tally.rows + number - seen, number
        if row["status"] != OK:
            tally.leave_out(f"without labels: {row['status']}")
            continue
        tally.images += 1
        yield number, row
        if tally.images == part.limit:
            return
    rest = part.starts[0] + part.rows - seen
    tally.leave_out(absent, rest)
    tally.rows += rest
