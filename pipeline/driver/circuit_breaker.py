"""Stops a run whose labels are worth nothing: bad configuration looks like this, bad data does not.

It goes by what workers have made, as their heartbeats tell: a window may be larger than what should be lost.
"""

from pipeline.errors import WouldRepeat
from pipeline.records import OK
from pipeline.worker.stage_timer import MetricsSnapshot

FIRST_LOOK = 500  # rows: enough to tell a pattern from chance, and a heartbeat or two more stay below 1,000
MAX_FAILED = 0.5  # share of rows without labels
MAX_SINGLE = 0.9  # share of labelled images that are one segment: thresholds far too high, or attention without content
MAX_SEGMENTS = 150  # of an image, on average: thresholds so low that hardly any of 256 anchors merge


def check(made: MetricsSnapshot) -> None:
    """Raises WouldRepeat with the reason and examples where most of what was made is useless."""
    rows = sum(made.images.values())
    if rows < FIRST_LOOK:
        return
    failed = {status: count for status, count in made.images.items() if status != OK}
    labelled = rows - sum(failed.values())
    if rows - labelled > MAX_FAILED * rows:
        worst = sorted(failed.items(), key=lambda item: -item[1])[:3]
        reasons = ", ".join(f"{count} {status}" for status, count in worst)
        raise WouldRepeat(
            f"{rows - labelled} of the first {rows} rows have no labels ({reasons}), {_such_as(made, 'failed')}"
        )
    if made.single > MAX_SINGLE * labelled:
        raise WouldRepeat(
            f"{made.single} of the first {labelled} label maps are one segment: lower the thresholds, "
            f"or look at the model with `diffseg segment`; {_such_as(made, 'single')}"
        )
    if made.segments > MAX_SEGMENTS * labelled:
        raise WouldRepeat(
            f"the first {labelled} label maps have {made.segments / labelled:.0f} segments each: raise the thresholds; "
            f"{_such_as(made, 'many')}"
        )


def _such_as(made: MetricsSnapshot, kind: str) -> str:
    return f"for example {'; '.join(made.examples.get(kind, ()))}"
