"""`diffseg compact`: windows into files of about 256 MB, which every reader then prefers."""

from typing import TYPE_CHECKING

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.run.compact import Compacted


def compact(
    url: options.Run,
    json: options.Json = False,
) -> None:
    """Join what is committed of a run into larger files; the same command resumes it, and takes in what is new."""
    from dataclasses import asdict

    from pipeline.run.compact import compact
    from pipeline.run.ledger import Ledger

    ledger = Ledger.open(url)
    done = compact(ledger, tick=lambda state: console.note(_describe(state)))
    if json:
        console.say_json({"output": str(ledger), **asdict(done)})
        return
    fresh = f"{done.written:,} written, {done.removed:,} outdated removed" if done.written else "nothing new"
    console.say(f"{ledger}: {_describe(done)}, {fresh}")


def _describe(state: "Compacted") -> str:
    return f"{state.windows:,} windows in {state.files:,} files, {console.size(state.size)}"
