"""`diffseg status`: how far a run is, from storage alone."""

from dataclasses import asdict
from typing import Annotated

import typer

from jobs import console, options


def status(
    url: Annotated[str, typer.Argument(help="The run: the folder or URL given to label --output.")],
    json: options.Json = False,
) -> None:
    """Done, left, failed, speed and ETA of a run, from anywhere that sees its storage."""
    from pipeline.ledger import Ledger
    from pipeline.status import status

    ledger = Ledger.open(url)
    seen = status(ledger)
    if json:
        console.say_json({"output": str(ledger), "fingerprint": ledger.run.fingerprint, **asdict(seen)})
        return
    failed = sum(seen.failed.values())
    state = "complete" if seen.complete else f"{seen.drivers} drivers at work" if seen.drivers else "not at work"
    rows = [
        ["state", state],
        ["model", f"{ledger.run.model}, mode {ledger.run.segment['mode']}, fingerprint {ledger.run.fingerprint}"],
        ["shards", f"{seen.shards_ended:,} of {seen.shards:,} done, {console.size(seen.bytes_left)} of input left"],
        ["windows", f"{seen.windows:,} committed, {console.size(seen.output_bytes)}"],
        ["rows", f"{'' if seen.rows_exact else 'at least '}{seen.rows:,}, {failed:,} without labels"],
    ]
    if seen.drivers:
        rows.append(["speed", f"{seen.images_per_s:.1f} images/s, {console.duration(seen.eta_s)} left"])
    rows += [[f"  {reason}", f"{count:,}"] for reason, count in sorted(seen.failed.items())]
    rows += [["  for example", example] for example in seen.examples]
    console.table(str(ledger), ["", ""], rows)
