from typing import Any

import pytest
import torch

from diffseg.method.aggregate import aggregate
from diffseg.models.unet.capture import capture_attention
from infra.embedded.architecture import LAYOUT
from infra.embedded.checkpoints import build
from infra.embedded.loss import (
    FAR,
    AnchorAttention,
    AnchorProcessor,
    aggregate_anchors,
    draw_anchors,
    grouping_loss,
    keep_apart,
    stay_inside,
)

HALVES = torch.tensor([[0, 0, 1, 1]] * 4).flatten()
SAME = (HALVES[:, None] == HALVES[None, :]).float()


@pytest.fixture(scope="module")
def seen():
    """Anchor maps of a random UNet beside the maps DiffSeg captures of the same pass, on a grid of 16 x 24."""
    unet: Any = build(LAYOUT).unet
    inputs = (torch.randn(2, 12, 16, 24), torch.tensor(50), torch.randn(2, 77, 64))
    with torch.no_grad(), capture_attention(unet) as store:
        unet(*inputs)
    maps = store.maps((16, 24))
    anchors = torch.randint(16 * 24, (2, 9))
    holder = [AnchorAttention((16, 24), anchors)]
    unet.set_attn_processor(
        {
            name: AnchorProcessor(holder, name) if ".attn1." in name else stock
            for name, stock in unet.attn_processors.items()
        }
    )
    with torch.no_grad():
        unet(*inputs)
    return maps, holder[0]


def test_training_sees_the_attention_that_labelling_sees(seen):
    maps, store = seen
    whole = aggregate(maps.levels, maps.grid).whole()
    cells = whole.shape[-1]
    expected = whole.gather(1, store.anchors[:, :, None].expand(-1, -1, cells)) / cells
    assert torch.allclose(aggregate_anchors(store), expected, rtol=1e-3, atol=1e-7)


def test_a_coarser_level_answers_for_the_cells_below_it():
    store = AnchorAttention((4, 8), torch.tensor([[0, 9, 31]]))
    assert store.rows(32).tolist() == [[0, 9, 31]]
    assert store.rows(8).tolist() == [[0, 0, 7]]


def test_even_attention_over_the_own_segment_costs_nothing():
    perfect, flat = SAME / SAME.sum(-1, keepdim=True), torch.full((16, 16), 1 / 16)
    assert stay_inside(perfect[None], SAME[None]).abs().max() < 1e-3
    assert stay_inside(flat[None], SAME[None]).min() > 0.5


def test_maps_of_two_segments_are_pushed_apart_and_of_one_together():
    perfect = (SAME + 1e-6) / (SAME + 1e-6).sum(-1, keepdim=True)
    flat = torch.full((16, 16), 1 / 16)
    assert keep_apart(perfect[None], SAME[None]).item() == pytest.approx(0, abs=1e-4)
    assert keep_apart(flat[None], SAME[None]).item() == pytest.approx(FAR)


def test_anchors_lie_in_small_segments_more_often_than_area_says():
    membership = torch.zeros(1, 2, 10, 10)
    membership[0, 0] = 1
    membership[0, :, 0, :4] = torch.tensor([[0.0], [1.0]])
    anchors = torch.cat([draw_anchors(membership, 20, torch.Generator().manual_seed(i)) for i in range(200)])
    share = (anchors < 4).float().mean().item()
    assert 0.08 < share < 0.25


def test_the_loss_reaches_queries_and_keys_of_every_level(seen):
    unet: Any = build(LAYOUT, seed=1).unet
    holder = [AnchorAttention((16, 16), torch.randint(256, (1, 32)))]
    unet.set_attn_processor(
        {name: AnchorProcessor(holder, name) for name in unet.attn_processors if ".attn1." in name}
        | {name: stock for name, stock in unet.attn_processors.items() if ".attn1." not in name}
    )
    unet(torch.randn(1, 12, 16, 16), 50, torch.randn(1, 77, 64))
    membership = torch.zeros(1, 2, 16, 16)
    membership[0, 0, :8], membership[0, 1, 8:] = 1, 1
    grouping_loss(holder[0], membership).sum().backward()
    untouched = [
        name
        for name, weight in unet.named_parameters()
        if ".attn1.to_q" in name or ".attn1.to_k" in name
        if weight.grad is None or weight.grad.abs().max() == 0
    ]
    assert untouched == []
