"""The one reader of derived tables: their values joined onto rows as these are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipeline.derived.note import FOLDER, parse_table, read_note
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.table.values import read_values

KEPT = 4  # windows whose values are in memory: about 5 MB each where images have 16 segments


class DerivedTable:
    """A table of a run, opened by NAME (its latest revision) or NAME/REVISION.

    Raises ConfigError where there is no such table, or it lacks one of the columns.
    """

    def __init__(self, ledger: Ledger, table: str, columns: Sequence[str]) -> None:
        self.ledger, self.columns = ledger, tuple(columns)
        self.note, self.revision = read_note(ledger, table)
        self.name = parse_table(table)[0]
        if lost := [name for name in columns if name not in self.note.columns]:
            there = ", ".join(self.note.columns)
            raise ConfigError(
                f"{self}: has no column {', '.join(lost)}, it has {there}: it was made by another command"
            )
        places, current = self.note.places, list(ledger.windows())
        self.windows = len(current)
        self._places = {(one.shard, one.window): places[one] for one in current if one in places}
        self._values = lru_cache(KEPT)(self._read)

    def __str__(self) -> str:
        return f"{self.ledger}/{FOLDER}/{self.id}"

    @property
    def id(self) -> str:
        """NAME/REVISION."""
        return f"{self.name}/{self.revision}"

    @property
    def outdated(self) -> str | None:
        """What to tell where windows were added or replaced since it was made; None where it is whole."""
        made, command = len(self._places), self.note.command
        if made == self.windows:
            return None
        return f"{self} was made from {made:,} of {self.windows:,} windows: run `{command} --extend`"

    def join(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows with `shard`, `index` and `segments`, each segment with the columns of this table too; see `of`."""
        for row in rows:
            values = self.of(row)
            yield {**row, "segments": row["segments"] and [s | v for s, v in zip(row["segments"], values, strict=True)]}

    def of(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The columns of this table for each segment of a row, in order; None where the table has no value.

        Memory holds the values of KEPT windows. Raises ConfigError where a part is missing or damaged.
        """
        if not row["segments"]:
            return []
        values = self._values(row["shard"], row["index"] // self.ledger.run.window)
        nothing = dict.fromkeys(self.columns)
        return [values.get((row["index"], segment["id"]), nothing) for segment in row["segments"]]

    def _read(self, shard: str, window: int) -> dict[tuple[int, int], dict[str, Any]]:
        if (shard, window) not in self._places:
            return {}
        part, group = self._places[shard, window]
        path = f"{FOLDER}/{self.name}/{part.name}"
        try:
            with self.ledger.store.reader(path) as stream:
                return read_values(stream, group, shard, self.columns)
        except (FileNotFoundError, ValueError) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else str(error)
            again = self.note.command
            raise ConfigError(f"{self.ledger}/{path}: {why}; make the table again (`{again}`)") from error
