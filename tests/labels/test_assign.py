import numpy as np
import pytest
import torch

from diffseg.labels.assign import assign, paste
from tests.support import literal


def test_the_strongest_proposal_takes_the_pixel():
    proposals = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])

    assert assign(proposals, (1, 4)).tolist() == [[0, 0, 1, 1]]


def test_of_equals_the_first_wins():
    assert assign(torch.ones(3, 2, 2), (4, 4)).unique().tolist() == [0]


@pytest.mark.parametrize("count", [0, 1])
def test_without_rivals_everything_is_one_segment(count):
    assert assign(torch.zeros(count, 2, 2), (3, 5)).tolist() == [[0] * 5] * 3


@pytest.mark.parametrize("size", [(24, 40), (13, 17), (1, 50), (5, 3), (4, 6)])
def test_enlarging_equals_the_literal_implementation(size):
    proposals = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))

    expected = np.argmax([literal.enlarge(each.double().numpy(), size) for each in proposals], axis=0)

    assert np.array_equal(assign(proposals, size), expected)


def test_labels_do_not_depend_on_the_tiles_they_are_made_in(monkeypatch):
    proposals = torch.rand(7, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = assign(proposals, (50, 30))

    monkeypatch.setattr("diffseg.labels.assign.TILE_BYTES", {"cpu": 7 * 30 * 4 * 3})

    assert torch.equal(assign(proposals, (50, 30)), whole)


def test_a_crop_is_placed_in_its_frame_and_the_rest_ignored():
    labels = torch.tensor([[0, 1], [2, 3]])

    assert paste(labels, (0, 1, 2, 2), (2, 4)).tolist() == [[-1, 0, 1, -1], [-1, 2, 3, -1]]


def test_a_crop_of_another_size_takes_the_nearest_pixel():
    labels = torch.tensor([[0, 1, 2, 3]])

    assert paste(labels, (0, 0, 1, 2), (1, 2)).tolist() == [[1, 3]]
    assert paste(labels, (0, 0, 1, 6), (1, 6)).tolist() == [[0, 1, 1, 2, 3, 3]]
