"""Stops a run whose labels are worth nothing: bad configuration looks like this, bad data does not."""

from pipeline.errors import Stopped
from pipeline.tally import Tally

FIRST_LOOK = 1000  # rows: enough to tell a pattern from chance, few enough to cost next to nothing
MAX_FAILED = 0.5  # share of rows without labels
MAX_SINGLE = 0.9  # share of labelled images that are one segment: thresholds far too high, or attention without content


def check(tally: Tally) -> None:
    """Raises Stopped with the reason and examples where most of what came back is useless."""
    if tally.rows < FIRST_LOOK:
        return
    failed = tally.failed.total()
    labelled = tally.rows - failed
    if failed > MAX_FAILED * tally.rows:
        reasons = ", ".join(f"{count} {status}" for status, count in tally.failed.most_common(3))
        examples = "; ".join(tally.examples)
        raise Stopped(f"{failed} of the first {tally.rows} rows have no labels ({reasons}), for example {examples}")
    if tally.single > MAX_SINGLE * labelled:
        raise Stopped(
            f"{tally.single} of the first {labelled} label maps are one segment: lower the thresholds, "
            "or look at the model with `diffseg segment`"
        )
