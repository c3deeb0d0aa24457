"""Backoff: how long to wait before the next try of what has failed, doubling from try to try up to a minute.

tenacity computes the delays, its loop is not used: the driver notes when a try is due and meanwhile does other work.
"""

from tenacity import RetryCallState, Retrying, wait_exponential

LONGEST_S = 60.0


def delay_s(first_s: float, times: int) -> float:
    """Seconds before the next try after `times` failures in a row. first_s: after one; half of it after none."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = times
    return float(wait_exponential(multiplier=first_s, max=LONGEST_S)(state))
