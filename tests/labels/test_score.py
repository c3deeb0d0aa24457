import numpy as np
import pytest
import torch

from diffseg.labels.rle import rle_encode, segments_of
from diffseg.labels.score import margins, score
from diffseg.method.merge import Proposals


def test_margin_is_the_lead_over_the_runner_up():
    proposals = torch.tensor([[[[4.0]], [[3.0]], [[1.0]]]])

    assert margins(proposals).flatten().tolist() == [0.25, 0.0, 0.0]


def test_equals_lead_by_nothing():
    assert margins(torch.full((1, 2, 1, 1), 3.0)).flatten().tolist() == [0.0, 0.0]


def test_where_nothing_attends_nothing_leads():
    assert margins(torch.zeros(1, 2, 1, 1)).flatten().tolist() == [0.0, 0.0]


def test_a_proposal_alone_leads_by_everything():
    assert margins(torch.tensor([[[[2.0, 0.0]]]])).flatten().tolist() == [1.0, 0.0]


def test_padding_changes_no_margin():
    proposals = torch.rand(1, 3, 2, 2)

    padded = torch.cat([proposals, torch.zeros(1, 2, 2, 2)], 1)

    assert torch.equal(margins(padded)[:, :3], margins(proposals))


def proposals_of(maps, stability):
    return Proposals(maps.flatten(2), tuple([maps.shape[1]] * len(maps)), stability, ())


def test_the_score_is_mean_margin_times_stability():
    maps = torch.tensor([[[[4.0, 4.0], [4.0, 1.0]], [[2.0, 3.0], [2.0, 4.0]]]])
    rle = rle_encode([torch.tensor([[0, 0], [0, 1]])])

    found = score(
        segments_of(rle, rle.label, 6), rle, proposals_of(maps, torch.tensor([[0.5, 1.0]])), (2, 2), [(0, 0, 2, 2)]
    )

    torch.testing.assert_close(found, torch.tensor([0.5 * (0.5 + 0.25 + 0.5) / 3, 0.75], dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "window"), [((12, 20), (0, 0, 12, 20)), ((14, 30), (1, 5, 12, 20)), ((7, 9), (0, 1, 7, 5))]
)
def test_sum_along_runs_equal_sums_over_pixels(size, window):
    grid = (4, 5)
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 3, *grid, generator=generator)
    labels = torch.full(size, -1)
    top, left, height, width = window
    labels[top : top + height, left : left + width] = torch.randint(0, 3, (height, width), generator=generator)
    rle = rle_encode([labels])

    found = score(segments_of(rle, rle.label, 6), rle, proposals_of(maps, torch.ones(1, 3)), grid, [window])

    lead = margins(maps)[0].double()
    fine = 60  # parts of a pixel, so that a pixel between two cells has its share of both
    for value in range(3):
        total = 0.0
        for y, x in (labels == value).nonzero().tolist():
            row = int((y - top + 0.5) * grid[0] / height)
            columns = ((x - left + (np.arange(fine) + 0.5) / fine) * grid[1] / width).astype(int)
            total += lead[value, row, torch.from_numpy(columns)].mean().item()
        assert found[value].item() == pytest.approx(total / (labels == value).sum().item(), rel=1e-6)


def test_an_image_without_proposals_scores_zero():
    rle = rle_encode([torch.zeros(4, 4, dtype=torch.int64)])

    found = score(
        segments_of(rle, rle.label, 6),
        rle,
        proposals_of(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1)),
        (2, 2),
        [(0, 0, 4, 4)],
    )

    assert found.tolist() == [0.0]
