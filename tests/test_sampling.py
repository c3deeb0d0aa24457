"""A sample of a run: the same for the same seed, fair to every window, and a run like any other."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Shard, ShardTask
from pipeline.sampling import draw, within

COUNTS = {"a": 100, "b": 35, "c": 0, "d": 1000}
SHARD = Shard("a", "file:///a.tar", 1, "1")


def held(drawn, counts, window):
    return sum(min(window, counts[shard] - number * window) for shard, numbers in drawn.items() for number in numbers)


@given(st.integers(1, 2000), st.integers(0, 5), st.integers(1, 64))
def test_a_sample_holds_what_was_asked_and_no_window_more(images, seed, window):
    drawn = draw(COUNTS, window, images, seed)
    total = sum(COUNTS.values())
    assert min(images, total) <= held(drawn, COUNTS, window) < min(images, total) + window
    for shard, numbers in drawn.items():
        assert numbers <= set(range(-(-COUNTS[shard] // window)))


def test_a_larger_sample_of_the_same_seed_holds_the_smaller_one():
    small, large = draw(COUNTS, 10, 100, 7), draw(COUNTS, 10, 900, 7)
    assert all(numbers <= large[shard] for shard, numbers in small.items())


def test_other_seeds_draw_other_windows():
    assert draw(COUNTS, 10, 100, 1) == draw(COUNTS, 10, 100, 1)
    assert draw(COUNTS, 10, 100, 1) != draw(COUNTS, 10, 100, 2)


def test_every_window_is_drawn_as_often_as_any_other():
    often = Counter(
        (shard, number)
        for seed in range(2000)
        for shard, numbers in draw({"a": 40, "b": 20, "c": 40}, 10, 20, seed).items()
        for number in numbers
    )
    assert len(often) == 10
    assert min(often.values()) > 320  # two of ten windows each time: 400 expected, with a deviation of 18
    assert max(often.values()) < 480


@pytest.mark.parametrize(
    ("task", "windows", "parts"),
    [
        (ShardTask(SHARD), {0, 1, 4}, [(0, 1), (4, 4)]),
        (ShardTask(SHARD, 1, 3), {0, 1, 3, 4}, [(1, 1), (3, 3)]),
        (ShardTask(SHARD, 2), {0, 1}, []),
        (ShardTask(Shard("z", "file:///z.tar", 1, "1")), {0}, []),
    ],
)
def test_tasks_are_cut_down_to_the_windows_of_the_sample(task, windows, parts):
    assert [(part.first_window, part.last_window) for part in within([task], {"a": windows})] == parts
