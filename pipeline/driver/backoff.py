"""Backoff: how long to wait before the next try of what has failed, doubling from try to try up to a minute.

The driver notes when a try is due, and meanwhile does other work.
"""

LONGEST_S = 60.0


def delay_s(first_s: float, times: int) -> float:
    """Seconds before the next try after `times` failures in a row. first_s: after one; half of it after none."""
    return min(LONGEST_S, first_s * 2.0 ** min(times - 1, 64))
