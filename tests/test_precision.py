import pytest
import synthetic
import torch

from diffseg.aggregate import aggregate
from diffseg.merging import Logged, anchor_cells, symmetric_kl
from diffseg.precision import MATMUL, NAME, tensor_cores


@pytest.mark.parametrize("allowed", [True, False])
def test_the_setting_is_given_back_whatever_happens(allowed):
    before = getattr(MATMUL, NAME)

    def work():
        with tensor_cores(allowed):
            assert (getattr(MATMUL, NAME) in ("tf32", True)) is allowed
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert getattr(MATMUL, NAME) == before


def tf32(values):
    """Rounded to ten bits of mantissa, as tensor cores read float32."""
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_densities_keep_distances_exact_where_probabilities_would_not():
    grid = (16, 16)
    levels = [torch.from_numpy(level)[None] for level in synthetic.attention(synthetic.blobs(grid, 5, 3), (1, 2, 4), 3)]
    attention = aggregate(levels, grid)
    p, q = Logged(attention.at(anchor_cells(grid, 4))), Logged(attention.whole())
    exact = symmetric_kl(p, q)

    def worst(maps_p, logs_p, maps_q, logs_q):
        for logged, maps, logs in ((p, maps_p, logs_p), (q, maps_q, logs_q)):
            logged.maps, logged.logs = tf32(maps), tf32(logs)
        return (symmetric_kl(p, q) - exact).abs().mean().item()

    originals = p.maps, p.logs, q.maps, q.logs
    centred = worst(*originals)
    shift = torch.tensor(256.0).log()
    raw = worst(originals[0], originals[1] - shift, originals[2], originals[3] - shift)

    assert centred < 2e-4
    assert centred < raw
