import numpy as np
import pytest
import torch

from diffseg.method.aggregate import aggregate
from diffseg.types import AttentionError
from tests.support import literal, synthetic


def flat(*shape):
    """Rows that attend to every cell alike."""
    return torch.full(shape, 1 / shape[-1])


def test_one_level_is_only_scaled_to_densities():
    level = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])

    assert torch.equal(aggregate([level], (1, 2)).whole(), 2 * level)


def test_flat_attention_of_any_level_has_density_one():
    density = aggregate([flat(2, 48, 48), flat(2, 12, 12), flat(2, 3, 3)], (4, 12)).whole()

    torch.testing.assert_close(density, torch.ones(2, 48, 48))


def test_a_level_weighs_as_much_as_its_side():
    fine = torch.zeros(1, 16, 16)
    fine[..., 0] = 1.0  # all attend to the first cell

    density = aggregate([fine, flat(1, 4, 4)], (4, 4)).whole()[0] / 16

    torch.testing.assert_close(density[:, 0], torch.full((16,), 2 / 3 + 1 / 3 / 16))
    torch.testing.assert_close(density[:, 1:], torch.full((16, 15), 1 / 3 / 16))


@pytest.mark.parametrize(
    ("grid", "factors"), [((8, 8), (1, 2, 4)), ((4, 12), (1, 2, 4)), ((12, 6), (1, 2, 3, 6)), ((6, 6), (1, 3))]
)
def test_it_equals_the_literal_implementation(grid, factors):
    levels = synthetic.attention(synthetic.blobs(grid, 3, seed=1), factors, seed=2)
    n = grid[0] * grid[1]

    ours = aggregate([torch.from_numpy(level)[None] for level in levels], grid).whole()[0] / n

    np.testing.assert_allclose(ours, literal.aggregate(levels, grid).reshape(n, n), rtol=2e-6)


def test_rows_that_nearly_sum_to_one_are_made_to():
    levels = [torch.from_numpy(level)[None] for level in synthetic.attention(synthetic.blobs((4, 4), 3, 1), (1, 2), 2)]

    stray = aggregate([1.01 * levels[0], 0.99 * levels[1]], (4, 4)).whole()

    torch.testing.assert_close(stray, aggregate(levels, (4, 4)).whole())


def test_a_floor_lifts_zeros_and_nothing_else():
    level = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])

    assert torch.equal(aggregate([level], (1, 2), floor=1e-3).whole(), torch.tensor([[[2.0, 2e-3], [1.0, 1.0]]]))


def test_tiles_and_single_maps_are_parts_of_the_whole(monkeypatch):
    levels = [torch.from_numpy(level)[None] for level in synthetic.attention(synthetic.blobs((6, 4), 3, 1), (1, 2), 2)]
    attention = aggregate(levels, (6, 4), floor=0.01)
    whole = attention.whole()

    monkeypatch.setattr(
        "diffseg.method.aggregate.TILE_BYTES", {"cpu": 5 * 4 * 24 * 4}
    )  # five rows of cells: two whole coarse ones

    assert [tile.shape[1] for tile in attention.tiles()] == [16, 8]
    assert torch.equal(attention.whole(), whole)
    assert torch.equal(attention.at((3, 17, 4)), whole[:, [3, 17, 4]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_becomes_float32(dtype):
    levels = [flat(1, 16, 16).to(dtype), flat(1, 4, 4).to(dtype)]

    torch.testing.assert_close(aggregate(levels, (4, 4)).whole(), torch.ones(1, 16, 16))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_an_image_whose_rows_are_no_distribution_is_named(level, value):
    levels = [flat(3, 16, 16), flat(3, 4, 4)]
    levels[level][1, 2, 3] = value

    with pytest.raises(AttentionError, match="image 1 ") as caught:
        aggregate(levels, (4, 4))

    assert caught.value.images == (1,)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one level"),
        ([flat(1, 9, 9)], "9 cells is no 4 x 4 grid"),
        ([flat(1, 4, 4)], "the finest 4 x 4"),
        ([flat(1, 16, 16), flat(2, 4, 4)], r"must be \[1, n, n\], got \[2, 4, 4\]"),
        ([flat(1, 16, 16), flat(1, 4, 16)], r"got \[1, 4, 16\]"),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        aggregate(levels, (4, 4))
