"""Cuts of a tree, from truths one can see."""

import numpy as np
import pytest

from diffseg.tree import LEAF, MERGE, Tree


def tree(*merges: tuple[int, int, float]) -> Tree:
    """A tree of leaves without features."""
    made = np.zeros(len(merges), MERGE)
    for at, (left, right, height) in enumerate(merges):
        made["left"][at], made["right"][at], made["height"][at] = left, right, height
    return Tree(np.zeros(len(merges) + 1, LEAF), made)


FOUR = tree((1, 3, 0.1), (0, 2, 0.2), (4, 5, 0.5))


@pytest.mark.parametrize(
    ("height", "segments"),
    [(0.0, [0, 1, 2, 3]), (0.1, [0, 1, 2, 1]), (0.3, [0, 1, 0, 1]), (9.0, [0, 0, 0, 0])],
)
def test_a_height_makes_the_merges_up_to_it(height, segments):
    assert FOUR.at_height(height).tolist() == segments


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_count_gives_as_many_segments(count):
    assert len(set(FOUR.into(count).tolist())) == count


def test_more_segments_than_leaves_are_the_leaves():
    assert FOUR.into(9).tolist() == [0, 1, 2, 3]


def test_a_single_leaf_is_the_image():
    assert tree().into(1).tolist() == [0]


def test_a_cut_names_its_nodes_in_the_order_of_its_segments():
    assert [FOUR.nodes_of(FOUR.into(4 - made)).tolist() for made in range(4)] == [[0, 1, 2, 3], [0, 4, 2], [5, 4], [6]]


@pytest.mark.parametrize(
    "merges", [[(0, 0, 0.1)], [(0, 2, 0.1)], [(0, 1, 0.2), (0, 2, 0.3)], [(0, 1, 0.2), (2, 3, 0.1)], [(0, 1, np.nan)]]
)
def test_what_is_no_tree_is_refused(merges):
    with pytest.raises(ValueError, match="merges"):
        tree(*merges)
