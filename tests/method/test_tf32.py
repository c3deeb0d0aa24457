import pytest
import torch

from diffseg.method.aggregate import aggregate
from diffseg.method.merge import Logged, anchor_cells, symmetric_kl
from diffseg.method.tf32 import MATMUL, tensor_cores
from tests.support import synthetic


def settings():
    """Everything that says how float32 products are made, by its name; RuntimeError where a setting cannot be read."""
    read = {
        "allow_tf32": lambda: MATMUL.allow_tf32,
        "fp32_precision": lambda: getattr(MATMUL, "fp32_precision", None),
        "float32_matmul_precision": torch.get_float32_matmul_precision,
    }
    found = {}
    for name, value in read.items():
        try:
            found[name] = value()
        except RuntimeError:
            found[name] = RuntimeError
    return found


@pytest.fixture
def untouched():
    before = MATMUL.allow_tf32, getattr(MATMUL, "fp32_precision", None)
    yield
    MATMUL.allow_tf32 = before[0]
    if before[1]:
        MATMUL.fp32_precision = before[1]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    "chosen",
    [("allow_tf32", True), ("allow_tf32", False), ("fp32_precision", "tf32"), ("fp32_precision", "ieee"), None],
)
def test_the_setting_is_given_back_whatever_happens(allowed, chosen):
    if chosen and hasattr(MATMUL, chosen[0]):
        setattr(MATMUL, *chosen)
    before = settings()

    def work():
        with tensor_cores(allowed):
            assert settings()["fp32_precision"] == "tf32" if allowed else settings() == before
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert settings() == before


def test_code_that_reads_the_older_settings_may_run_meanwhile():
    with tensor_cores(True):
        assert settings()["allow_tf32"] is True
        assert settings()["float32_matmul_precision"] == "high"


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
