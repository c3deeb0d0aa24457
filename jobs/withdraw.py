"""`diffseg withdraw`: samples that no reader of a run may show any more."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.shared import console, options


def withdraw(
    url: options.Run,
    keys: Annotated[Path, typer.Option("--keys", help="Text file: keys of samples, one a line.", show_default=False)],
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete their labels and bytes for good: needs rights to delete.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Withdraw samples from a run, of which no reader shows anything from then on; exit 3 where a key is of none."""
    from dataclasses import asdict

    from pipeline import withdrawal
    from pipeline.errors import ConfigError
    from pipeline.run.ledger import Ledger

    try:
        wanted = tuple(dict.fromkeys(line for line in keys.read_text("utf-8-sig").splitlines() if line.strip()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{keys}: cannot be read as text: {error}") from error
    if not wanted:
        raise ConfigError(f"{keys}: no keys: give one a line")
    ledger = Ledger.open(url)
    done = withdrawal.withdraw(ledger, wanted)
    gone = list(withdrawal.purge(ledger, wanted)) if purge else []
    if json:
        console.say_json({"output": str(ledger), **asdict(done), "purged": gone})
    else:
        console.say(
            f"{ledger}: {len(wanted) - len(done.absent):,} keys are withdrawn, {done.rows:,} rows have them now"
        )
    if done.repeated:
        console.note(f"{len(done.repeated):,} keys are of several samples, which are all withdrawn")
    if done.absent:
        console.note(f"diffseg: {len(done.absent):,} keys are of no sample yet, {done.absent[0]!r} first")
    if purge and not json:
        console.say(
            f"{len(gone):,} objects deleted; `diffseg compact` joins windows again, `diffseg label` proves the run"
        )
    return 3 if done.absent else 0
