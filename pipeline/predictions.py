"""What a run says of every image, by the key the data set has for it.

Memory: label maps stay encoded, 2 to 3 kB each: 100,000 images take about 300 MB.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.ledger import Ledger
from pipeline.protocols import Protocol
from pipeline.records import OK
from pipeline.scoring import Labelled, LeftOut


class Predictions:
    """The label maps of a run by key of the data set."""

    def __init__(self, ledger: Ledger, protocol: Protocol, *, categories: bool = False) -> None:
        self.name, self._asked = str(ledger), set[str]()
        self._clusters: dict[str, int] = {}
        self._found: dict[str, Labelled | LeftOut] = {}
        columns = ["key", "status", "width", "height", "label_map"] + ["segments"] * categories
        for row in ledger.rows(columns):
            key = protocol.key_of(row["key"])
            again = key in self._found
            self._found[key] = LeftOut("a key that repeats in the run") if again else self._labelled(row)
        if not self._found:
            raise ConfigError(f"{ledger}: the run has no rows yet, there is nothing to evaluate")

    def _labelled(self, row: Mapping[str, Any]) -> Labelled | LeftOut:
        if row["status"] != OK:
            return LeftOut("failed in the run", row["status"])
        return Labelled(row["label_map"], (row["height"], row["width"]), self._meanings(row.get("segments")))

    def _meanings(self, segments: Sequence[Mapping[str, Any]] | None) -> tuple[int, ...] | None:
        """Categories as numbers that are the same in every image; segments without one are left unclaimed."""
        if not any(segment["category"] for segment in segments or ()):
            return None
        meaning = {
            segment["id"]: self._clusters.setdefault(segment["category"], len(self._clusters))
            for segment in segments or ()
            if segment["category"]
        }
        return tuple(meaning.get(i, -1) for i in range(1 + max(segment["id"] for segment in segments or ())))

    def __getitem__(self, key: str) -> Labelled | LeftOut:
        """What the run has for a sample of the truth."""
        self._asked.add(key)
        return self._found.get(key, LeftOut("no row in the run"))

    @property
    def never_asked(self) -> int:
        """Keys without truth."""
        return len(self._found.keys() - self._asked)

    def refuse_strangers(self) -> None:
        """Raises ConfigError where the run and the truth have no key in common."""
        if self._asked and not self._asked & self._found.keys():
            ours, theirs = min(self._found), min(self._asked)
            raise ConfigError(
                f"{self.name} has none of the {len(self._asked)} keys of the truth: keys are like {ours!r} here and "
                f"like {theirs!r} there"
            )
