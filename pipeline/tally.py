"""What came back: the counts a driver keeps, and nothing else it needs to remember."""

from collections import Counter, deque
from dataclasses import dataclass, field

from pipeline.messages import Receipt, ShardFailure


@dataclass(slots=True)
class Tally:
    """What this driver has seen come back."""

    windows: int = 0
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # rows by status, other than ok
    wasted_windows: int = 0
    lost_workers: int = 0
    retried_tasks: int = 0
    busy_s: float = 0.0  # labelling, of all workers
    failures: Counter[str] = field(default_factory=Counter)  # tasks that stopped short, by class of error
    broken: dict[str, ShardFailure] = field(default_factory=dict)  # shards given up, by id
    examples: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    closed_bytes: int = 0  # accounted for in shards that are over
    open_bytes: dict[str, int] = field(default_factory=dict)  # the same in each of the others

    def note(self, receipt: Receipt) -> None:
        """Count a committed window."""
        self.open_bytes[receipt.shard] = max(receipt.end, self.open_bytes.get(receipt.shard, 0))
        if receipt.wasted:  # another driver committed it, and counts it
            self.wasted_windows += 1
            return
        self.windows += 1
        self.rows += receipt.rows
        self.busy_s += receipt.seconds
        self.failed.update(dict(receipt.failed))
        if receipt.example:
            self.examples.append(f"{receipt.shard} {receipt.example}")

    def closed(self, shard: str) -> None:
        """Nothing of a shard is out or queued any more: its share of memory is given back."""
        self.closed_bytes += self.open_bytes.pop(shard, 0)

    @property
    def bytes_done(self) -> int:
        """Of the input, accounted for by what came back."""
        return self.closed_bytes + sum(self.open_bytes.values())
