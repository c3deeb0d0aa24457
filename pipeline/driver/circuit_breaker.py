"""The circuit breaker stops a run whose labels are useless: bad configuration looks like this, bad data does not.

It counts rows that workers have made, committed or not: a window may be larger than what should be lost.
"""

from pipeline.errors import WouldRepeat
from pipeline.records import OK, POISON
from pipeline.worker.stage_timer import MetricsSnapshot

FIRST_CHECK = 500  # rows: enough to tell a pattern from chance; what comes by the next answer stays below 1,000
MAX_FAILED = 0.5  # share of rows without labels
MAX_SINGLE = 0.9  # share of labelled images that are one segment: thresholds far too high, or attention without content
MAX_SEGMENTS = 150  # of an image, on average: thresholds so low that hardly any of 256 anchors merge


def check(made: MetricsSnapshot, last_end: str = "") -> None:
    """Raises WouldRepeat with the reason and examples where most of what was made is useless.

    last_end: the error that ended a worker last; it explains rows of poison.
    """
    rows = made.rows
    if rows < FIRST_CHECK:
        return
    failed = {status: count for status, count in made.images.items() if status != OK}
    labelled = rows - sum(failed.values())
    if rows - labelled > MAX_FAILED * rows:
        worst = sorted(failed.items(), key=lambda item: -item[1])[:3]
        reasons = ", ".join(f"{count} {status}" for status, count in worst)
        cause = f"; a worker ended with {last_end}" if last_end and POISON in failed else ""
        raise WouldRepeat(
            f"{rows - labelled} of the first {rows} rows have no labels ({reasons}), {_examples(made, 'failed')}{cause}"
        )
    if made.single > MAX_SINGLE * labelled:
        raise WouldRepeat(
            f"{made.single} of the first {labelled} label maps are one segment: lower the thresholds, "
            f"or look at the model with `diffseg segment`; {_examples(made, 'single')}"
        )
    if made.segments > MAX_SEGMENTS * labelled:
        raise WouldRepeat(
            f"the first {labelled} label maps have {made.segments / labelled:.0f} segments each: raise the thresholds; "
            f"{_examples(made, 'many')}"
        )


def _examples(made: MetricsSnapshot, kind: str) -> str:
    return f"for example {'; '.join(made.examples.get(kind, ()))}"
