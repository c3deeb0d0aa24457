"""`diffseg verify`: the proof that a run is complete, or the list of what is missing."""

from typing import Annotated

import typer

from jobs.shared import console, options


def verify(
    url: options.Run,
    full: Annotated[bool, typer.Option("--full", help="Read every row and every source shard again.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set broken and foreign objects aside in quarantine/: needs rights to delete."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what would be done.")] = False,
    json: options.Json = False,
) -> int:
    """Prove that every input sample has exactly one row; exit 1 and the list where not."""
    from pipeline.errors import ConfigError
    from pipeline.run.ledger import Ledger
    from pipeline.run.manifest import total
    from pipeline.run.repair import repair as mend
    from pipeline.run.verify import audit
    from pipeline.storage.object_store import Store

    if (dry_run and not repair) or (json and repair):
        raise ConfigError("--dry-run belongs to --repair, and --json does not")
    if repair:
        store, mended = Store(url), []
        for line, done in mend(store, full=full, dry_run=dry_run):
            mended.append(done)
            console.say(line)
        whole = "the same `diffseg label` makes the run whole" if all(mended) else "not all of it is mended"
        console.say(f"{len(mended):,} faults in {store}; {whole}" if mended else f"nothing to repair in {store}")
        return 0 if all(mended) else 1
    ledger = Ledger.open(url)
    checked = list(audit(ledger, full=full))
    faults = [fault for shard in checked for fault in shard.faults]
    totals = total(checked)
    if json:
        lines = [str(fault) for fault in faults]
        console.say_json({"output": str(ledger), "rows": totals.rows, "failed": totals.failed, "faults": lines})
    else:
        for fault in faults:
            console.say(str(fault))
        repeated = sum(shard.repeated_keys or 0 for shard in checked)
        if repeated:
            console.say(
                f"{repeated:,} samples repeat a key of their shard; each has its own row, told apart by its index"
            )
        proved = f"{totals.rows:,} rows for as many samples in {totals.shards:,} shards, each exactly once"
        proved += f"; {len(ledger.withdrawn):,} keys are withdrawn" if ledger.withdrawn else ""
        console.say(f"{len(faults)} faults in {ledger}" if faults else f"verified: {proved}")
    return 1 if faults else 0
