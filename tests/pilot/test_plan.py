"""What a run will take, from how much there is and how fast a worker was."""

import json

import pytest

from pipeline.errors import ConfigError
from pipeline.inputs.count import Counts
from pipeline.pilot.plan import EFFICIENCY, Speed, plan, read_pilot

MILLION = Counts({"a": 400_000, "b": 600_000}, exact=True, error=0.0)


def test_hours_cost_bytes_and_workers_follow_from_a_speed():
    made = plan(MILLION, 10**11, Speed(images_per_s=5.0, output_bytes=3000.0), price=2.5, deadline=10)
    assert made.worker_hours == pytest.approx(1_000_000 / 5 / 3600 / EFFICIENCY)
    assert made.worker_hours is not None
    assert made.cost == pytest.approx(2.5 * made.worker_hours)
    assert made.output_bytes == 3e9
    assert made.workers == 6  # 58.5 hours of work in ten
    assert (made.shards, made.bytes, made.images, made.exact) == (2, 10**11, 1_000_000, True)


def test_without_a_speed_the_plan_says_what_there_is_and_no_more():
    made = plan(MILLION, 10, None, price=2.5, deadline=10)
    assert (made.worker_hours, made.cost, made.output_bytes, made.workers) == (None, None, None, None)


@pytest.mark.parametrize("deadline", [1e-9, 1.0, 1e9])
def test_the_workers_that_are_suggested_keep_the_deadline(deadline):
    made = plan(MILLION, 10, Speed(images_per_s=5.0), deadline=deadline)
    assert made.worker_hours is not None
    assert made.workers is not None
    assert made.worker_hours / made.workers <= deadline
    assert made.workers == 1 or made.worker_hours / (made.workers - 1) > deadline


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"price": -1.0}, "--price .* got -1"),
        ({"deadline": 0.0}, "--deadline .* got 0"),
        ({"price": float("nan")}, "nan"),
    ],
)
def test_prices_and_deadlines_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        plan(MILLION, 10, Speed(images_per_s=5.0), **options)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf")])
def test_a_speed_that_makes_no_sense_is_refused(speed):
    with pytest.raises(ConfigError, match="above 0"):
        Speed(images_per_s=speed)


def test_a_pilot_is_read_and_what_is_none_is_named(tmp_path):
    path = tmp_path / "pilot.json"
    path.write_text(json.dumps({"images_per_s": 4.5, "output_bytes": 2100, "model": "tiny"}))
    assert read_pilot(str(path)) == Speed(images_per_s=4.5, output_bytes=2100)
    for text in ("[]", "{}", "no json", '{"images_per_s": "fast", "output_bytes": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"pilot\.json: no pilot\.json of ours"):
            read_pilot(str(path))
    with pytest.raises(ConfigError, match="no such file; `diffseg pilot` writes it"):
        read_pilot(str(tmp_path / "none.json"))
