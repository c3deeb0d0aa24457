"""How long to wait before the next try of what has failed: twice as long each time, up to a minute."""

LONGEST_S = 60.0
DOUBLINGS = 16  # more than LONGEST_S can need, and far from what a float cannot hold


def delay_s(first_s: float, times: int) -> float:
    """Seconds before the next try after `times` failures in a row. first_s: after one; half of it after none."""
    return float(min(LONGEST_S, first_s * 2 ** (min(times, DOUBLINGS) - 1)))
