"""The prior: a score that rises and falls as its parts mean, and is 0 where nothing was told apart."""

import numpy as np
import pytest

from diffseg.prior import PRIOR, prior
from diffseg.tree import FEATURES, LEAF

AREAS = np.array([400, 100, 100, 100])
BOXES = np.array([[0, 0, 20, 20], [20, 0, 10, 10], [20, 10, 10, 10], [0, 20, 10, 10]])


def nodes(count: int = 4, **features: int) -> np.ndarray:
    """Nodes of equal features, half of what they can be where they are not given."""
    found = np.full(count, 128, LEAF)
    for name, value in features.items():
        found[name][1] = value
    return found


def test_equal_segments_have_equal_scores():
    scores = prior(nodes(), AREAS, BOXES)
    assert scores[1] == scores[2] == scores[3]
    assert (scores > 0).all()
    assert (scores < 1).all()


@pytest.mark.parametrize("name", FEATURES)
def test_a_score_never_falls_as_a_feature_of_its_node_rises(name):
    scores = [prior(nodes(**{name: value}), AREAS, BOXES)[1] for value in range(256)]
    assert (np.diff(scores) >= 0).all()
    assert bool(scores[-1] > scores[0]) is (name in PRIOR or f"log_{name}" in PRIOR)


def test_large_segments_and_compact_ones_score_higher():
    scores = prior(nodes(), AREAS, BOXES)
    assert scores[0] > scores[1]
    long = BOXES.copy()
    long[1] = [20, 0, 30, 10]
    assert prior(nodes(), AREAS, long)[1] < scores[1]


def test_scores_do_not_depend_on_the_size_of_the_label_map():
    assert prior(nodes(), AREAS * 9, BOXES * 3) == pytest.approx(prior(nodes(), AREAS, BOXES))


def test_the_only_segment_of_an_image_scores_nothing_and_no_segments_no_scores():
    assert prior(nodes(1), AREAS[:1], BOXES[:1]).tolist() == [0]
    assert prior(nodes(0), AREAS[:0], BOXES[:0]).shape == (0,)


def test_extremes_stay_shares():
    for value in (0, 255):
        scores = prior(np.full(2, value, LEAF), np.array([1, 10**9]), np.array([[0, 0, 1, 5000], [0, 0, 5000, 5000]]))
        assert (scores >= 0).all()
        assert (scores <= 1).all()
