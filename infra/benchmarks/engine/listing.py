"""What it takes to see what a run has on a store: in one listing, and in parts side by side as the engine does it.

    python infra/benchmarks/engine/listing.py s3://bucket/prefix [SHARDS]

Writes a run of so many shards (5,000), a window and an end record each, below a folder of its own, and removes it.
"""

import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from driver import a_run

from pipeline.run.layout import end_name, list_states, window_name
from pipeline.run.ledger import Ledger

WRITERS = 16
TIMES = 3


def main() -> None:
    """A line for every look."""
    url = f"{sys.argv[1].rstrip('/')}/{uuid.uuid4().hex[:8]}"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 5_000
    a_run(url, count, 1)
    ledger = Ledger.open(url)
    names = [name for shard in ledger.shards for name in (window_name(shard, 0), end_name(shard))]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: ledger.store.put_new(name, b"x"), names))
        for _ in range(TIMES):
            began = time.perf_counter()
            whole = list_states(ledger.store)
            between = time.perf_counter()
            parts = ledger.states()
            ended = time.perf_counter()
            assert parts == whole
            told = f"one listing {between - began:.2f} s, in parts {ended - between:.2f} s"
            sys.stdout.write(f"{len(names):,} objects: {told}\n")
            sys.stdout.flush()
        list(pool.map(ledger.store.remove, [name for name, _ in ledger.store.list("")]))


if __name__ == "__main__":
    main()
