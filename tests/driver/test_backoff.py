"""Waiting between tries grows, and has an end however often something failed."""

from pipeline.driver.backoff import LONGEST_S, delay_s


def test_each_failure_doubles_the_wait_up_to_a_minute():
    assert [delay_s(1.0, times) for times in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S]


def test_a_week_of_failures_is_waited_for_as_one_hour_of_them():
    assert delay_s(0.5, 100_000) == LONGEST_S
