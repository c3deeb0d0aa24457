"""`diffseg verify`: the proof that a run is complete, or the list of what is missing."""

from typing import Annotated

import typer

from jobs.shared import console, options


def verify(
    url: options.Run,
    full: Annotated[bool, typer.Option("--full", help="Read every row and every source shard again.")] = False,
    json: options.Json = False,
) -> int:
    """Prove that every input sample has exactly one row; exit 1 and the list where not."""
    from pipeline.run.ledger import Ledger
    from pipeline.run.manifest import total
    from pipeline.run.verify import audit

    ledger = Ledger.open(url)
    checked = list(audit(ledger, full=full))
    faults = [fault for shard in checked for fault in shard.faults]
    totals = total(checked)
    if json:
        console.say_json({"output": str(ledger), "rows": totals.rows, "failed": totals.failed, "faults": faults})
    else:
        for fault in faults:
            console.say(fault)
        repeated = sum(shard.repeated_keys or 0 for shard in checked)
        if repeated:
            console.say(
                f"{repeated:,} samples repeat a key of their shard; each has its own row, told apart by its index"
            )
        proved = f"{totals.rows:,} rows for as many samples in {totals.shards:,} shards, each exactly once"
        console.say(f"{len(faults)} faults in {ledger}" if faults else f"verified: {proved}")
    return 1 if faults else 0
