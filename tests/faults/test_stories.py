"""Random edits of a finished run: after `verify --repair` and `label` it is whole, whatever was done to it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import stories

FEW = settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
MANY = settings(FEW, max_examples=20, derandomize=False)


@pytest.fixture(scope="module", params=["windows", "compacted"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    stories.begin(folder, compacted=request.param == "compacted")
    return folder, stories.content(folder)


@FEW
@given(rng=st.randoms(use_true_random=True))
def test_a_run_is_whole_again(finished, rng):
    well, told = stories.tell(finished[0], finished[1], rng)
    assert well, told


@pytest.mark.slow
@pytest.mark.timeout(600)
@MANY
@given(rng=st.randoms(use_true_random=False))
def test_a_run_is_whole_again_after_forty_stories(finished, rng):
    well, told = stories.tell(finished[0], finished[1], rng)
    assert well, told
