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
    from pipeline.run.verify import audit

    if dry_run and not repair:
        raise ConfigError("--dry-run belongs to --repair")
    if repair:
        return _repair(url, full, dry_run, json)
    ledger = Ledger.open(url)
    checked = list(audit(ledger, full=full))
    faults = [fault for shard in checked for fault in shard.faults]
    totals = total(checked)
    if json:
        lines = [str(fault) for fault in faults]
        console.say_json({"output": str(ledger), "rows": totals.rows, "failed": totals.failed, "faults": lines})
    else:
        for fault in faults:
            console.say(f"{fault}; {fault.remedy}")
        repeated = sum(shard.repeated_keys or 0 for shard in checked)
        if repeated:
            console.say(
                f"{repeated:,} samples repeat a key of their shard; each has its own row, told apart by its index"
            )
        proved = f"{totals.rows:,} rows for as many samples in {totals.shards:,} shards, each exactly once"
        console.say(f"{len(faults)} faults in {ledger}" if faults else f"verified: {proved}")
    return 1 if faults else 0


def _repair(url: str, full: bool, dry_run: bool, json: bool) -> int:
    """Exit 1 where something is left that the next `label` does not mend."""
    from dataclasses import asdict

    from pipeline.run.repair import repair
    from pipeline.storage.object_store import Store

    store, done = Store(url), []
    for each in repair(store, full=full, dry_run=dry_run):
        done.append(each)
        if not json:
            console.say(str(each))
    if json:
        console.say_json({"output": str(store), "dry_run": dry_run, "repairs": [asdict(each) for each in done]})
    elif not done:
        console.say(f"nothing to repair in {store}")
    elif all(each.mended for each in done):
        console.say(f"{len(done):,} faults in {store}; the same `diffseg label` makes the run whole")
    return 0 if all(each.mended for each in done) else 1
