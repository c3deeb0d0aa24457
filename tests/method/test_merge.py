import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg.method.aggregate import Attention
from diffseg.method.merge import Logged, anchor_cells, symmetric_kl, visit_in_order
from diffseg.method.merge import merge as merge_attention
from tests.support import literal, synthetic


def densities(probabilities):
    values = torch.as_tensor(probabilities, dtype=torch.float32)
    return values[None] * values.shape[-1]


def merge(maps, grid, thresholds, anchors_per_side):
    whole = Attention(grid, maps, torch.ones(maps.shape[:2]), (), 0.0)
    return merge_attention(whole, thresholds, anchors_per_side)


def distances(p, q):
    return symmetric_kl(Logged(p), Logged(q))


def two_regions(leak=0.01):
    """4 x 4 cells, left half and right half, each attending to itself but for a little."""
    side = torch.tensor([[0, 0, 1, 1]] * 4).flatten()
    attention = (side[:, None] == side[None, :]).float() + leak
    return side, densities(attention / attention.sum(-1, keepdim=True))


def test_two_flat_regions_become_two_proposals():
    side, attention = two_regions()

    proposals = merge(attention, (4, 4), (1.0, 1.0, 1.0), anchors_per_side=2)

    assert proposals.trace == ((4, 2, 2),)
    assert torch.equal(proposals.maps[0].argmax(0), side)


def test_everything_is_one_proposal_under_a_large_threshold():
    _, attention = two_regions()

    assert merge(attention, (4, 4), (50.0, 50.0), anchors_per_side=4).trace == ((16, 1),)


def test_one_threshold_gives_the_anchors_own_surroundings():
    _, attention = two_regions()

    proposals = merge(attention, (4, 4), (1.0,), anchors_per_side=2)

    assert proposals.counts == (4,)
    torch.testing.assert_close(proposals.maps[0], attention[0, list(anchor_cells((4, 4), 2))])


def test_distance_equals_the_sum_it_stands_for():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(1, rows, 30, generator=generator) + 0.001 for rows in (3, 5))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)

    ours = distances(30 * p, 30 * q)[0]

    theirs = [[literal.distance(a, b) for b in q[0].double().numpy()] for a in p[0].double().numpy()]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_proposals_do_not_depend_on_the_tiles_maps_come_in(monkeypatch):
    maps = densities(synthetic.attention(synthetic.blobs((8, 8), 4, 0), (1,), 0)[0])
    whole = merge(maps, (8, 8), (0.4, 0.4), 4)

    monkeypatch.setattr("diffseg.method.aggregate.TILE_BYTES", {"cpu": 3 * 8 * 64 * 4})  # three rows of cells

    parts = merge(maps, (8, 8), (0.4, 0.4), 4)
    assert parts.trace == whole.trace
    torch.testing.assert_close(parts.maps, whole.maps)
    torch.testing.assert_close(parts.stability, whole.stability)


@pytest.mark.parametrize(
    ("side", "per_side", "first", "step", "count"),
    [(64, 16, 1, 4, 16), (64, 8, 0, 9, 8), (64, 32, 0, 2, 32), (32, 16, 0, 2, 16), (8, 16, 0, 1, 8), (9, 1, 4, 1, 1)],
)
def test_anchors_form_a_centred_lattice(side, per_side, first, step, count):
    assert list(anchor_cells((1, side), per_side)) == [first + step * i for i in range(count)]


def test_anchors_follow_each_axis_of_a_wide_grid():
    assert anchor_cells((2, 5), 3) == (0, 2, 4, 5, 7, 9)


def near(*rows):
    return np.array([[character == "x" for character in row] for row in rows])


def test_a_collected_map_may_be_collected_again_but_is_no_anchor():
    chain = near("xx..", "xxx.", ".xxx", "..xx")  # 0 takes 1; 2 is free and takes 1 once more

    assert visit_in_order(chain).tolist() == [0, 2]


def test_a_map_near_nothing_is_left_out():
    assert visit_in_order(near("x..", "...", "..x")).tolist() == [0, 2]


def test_nothing_near_anything_leaves_nothing():
    assert visit_in_order(np.zeros((3, 3), dtype=bool)).tolist() == []


@given(st.integers(0, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_visit_equals_a_plain_loop(count, seed, share):
    close = np.random.default_rng(seed).random((count, count)) < share
    matched, anchors = np.zeros(count, dtype=bool), []
    for i in range(count):
        if not matched[i] and close[i].any():
            anchors.append(i)
            matched |= close[i]

    assert visit_in_order(close).tolist() == anchors


def test_collected_maps_count_for_every_proposal_that_collects_them():
    """Three maps in a row, the middle one near both ends: it belongs to both means."""
    ends = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.2, 0.4], [0.1, 0.1, 0.8]])
    reach = distances(densities(ends), densities(ends))[0, 0, 1].item() * 1.01

    proposals = merge(densities(ends), (1, 3), (1e-9, reach), anchors_per_side=3)

    assert proposals.trace == ((3, 2),)
    torch.testing.assert_close(proposals.maps[0, 1] / 3, (ends[1] + ends[2]) / 2)


def test_the_comparison_is_strict():
    maps = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    exactly = distances(densities(maps), densities(maps))[0, 0, 1].item()

    assert merge(densities(maps), (1, 2), (exactly,), 2).maps[0].tolist() == densities(maps)[0].tolist()
    assert merge(densities(maps), (1, 2), (1e-9, exactly), 2).maps[0].tolist() == densities(maps)[0].tolist()
    assert merge(densities(maps), (1, 2), (1e-9, np.nextafter(np.float32(exactly), 1).item()), 2).counts == (1,)


def test_a_map_with_a_zero_is_collected_by_none():
    _, attention = two_regions()
    attention[0, 0, 5] = 0.0

    proposals = merge(attention, (4, 4), (50.0, 50.0), anchors_per_side=4)

    assert proposals.trace == ((15, 1),)
    torch.testing.assert_close(proposals.maps[0, 0], attention[0, 1:].mean(0))


def test_maps_that_all_have_zeros_leave_no_proposal():
    proposals = merge(densities(torch.eye(16)), (4, 4), (1.0, 1.0, 1.0), anchors_per_side=4)

    assert proposals.trace == ((0, 0, 0),)
    assert proposals.maps.isfinite().all()
    assert proposals.stability.isfinite().all()


def test_a_proposal_far_from_every_other_is_stable():
    _, attention = two_regions(leak=1e-4)

    proposals = merge(attention, (4, 4), (1.0, 1.0), anchors_per_side=2)

    torch.testing.assert_close(proposals.stability, torch.ones(1, 2))


@pytest.mark.parametrize(("share", "stable"), [(0.85, 1.0), (0.95, 0.5), (1.05, 0.5), (1.15, 1.0)])
def test_a_proposal_whose_members_hang_on_the_threshold_is_not(share, stable):
    maps = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    between = distances(densities(maps), densities(maps))[0, 0, 1].item()

    stability = merge(densities(maps), (1, 2), (between / share,), 2).stability

    torch.testing.assert_close(stability, torch.full((1, 2), stable))


def test_what_hung_on_one_threshold_is_not_made_stable_by_the_next():
    maps = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    between = distances(densities(maps), densities(maps))[0, 0, 1].item()

    stability = merge(densities(maps), (1, 2), (between, between / 2), 2).stability

    torch.testing.assert_close(stability, torch.full((1, 2), 0.5))


def test_a_threshold_below_rounding_keeps_every_map():
    maps = densities(synthetic.attention(synthetic.blobs((16, 16), 3, 0), (1,), 0)[0])

    assert merge(maps, (16, 16), (1e-12, 1e-12), 16).trace == ((256, 256),)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 1.2), st.integers(1, 6))
def test_it_equals_the_literal_implementation(seed, tau, per_side):
    grid = (6, 8)
    [level] = synthetic.attention(synthetic.blobs(grid, 4, seed), (1,), seed)
    exact = level.astype(np.float64)
    exact /= exact.sum(-1, keepdims=True)
    theirs, counts = literal.merge(exact, grid, (tau, tau, tau), per_side)

    ours = merge(densities(exact), grid, (tau, tau, tau), per_side)

    if list(ours.trace[0]) == counts:  # a distance within rounding of tau may fall on either side
        np.testing.assert_allclose(ours.maps[0] / 48, theirs, rtol=1e-4)
    else:
        assert _closest_to(exact, grid, tau, per_side) < 1e-4


def _closest_to(exact, grid, tau, per_side):
    """How near any distance of the first iteration comes to the threshold."""
    cells = literal.anchors(grid, per_side)
    return min(abs(literal.distance(exact[cell], other) - tau) for cell in cells for other in exact)


def test_images_of_a_batch_do_not_meet():
    grid = (8, 8)
    maps = [densities(synthetic.attention(synthetic.blobs(grid, count, seed=3), (1,), seed=3)[0]) for count in (2, 6)]

    together = merge(torch.cat(maps), grid, (0.5, 0.5), 4)

    for image, single in enumerate(merge(each, grid, (0.5, 0.5), 4) for each in maps):
        count = single.counts[0]
        assert together.trace[image] == single.trace[0]
        torch.testing.assert_close(together.maps[image, :count], single.maps[0])
        assert not together.maps[image, count:].any()
