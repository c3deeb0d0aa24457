import contextlib
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffseg.models.attention import add_head_mean, attend_opaque
from diffseg.models.fused_attention import fused_attention, log_sum_exp
from diffseg.models.unet.capture import capture_attention, cut_after_last_attention
from diffseg.models.unet.recognise import attention_levels
from infra.embedded.checkpoints import build, narrow, whole

torch.set_num_threads(1)


def definition(query, key):
    """softmax(q k^T / sqrt(d)).mean(heads), in float64."""
    scores = query.double() @ key.double().transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.softmax(-1).mean(1)


def heads(images, count, cells, channels, *, dtype=torch.float32, seed=0):
    """Query, key and value in the memory layout a projection leaves them in."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, cells, count, channels)
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]


def head_mean(query, key, value):
    mean = torch.zeros(query.shape[0], query.shape[2], query.shape[2])
    add_head_mean(mean, query, key, fused_attention(query, key, value)[1])
    return mean


def small_unet(name, seed=0):
    layout = narrow(whole(name))
    return layout, build(layout, seed).unet.requires_grad_(False)


def inputs(layout, height=16, width=16, images=1):
    generator = torch.Generator().manual_seed(1)
    given = {
        "sample": torch.randn(images, 4, height, width, generator=generator),
        "timestep": 300,
        "encoder_hidden_states": torch.randn(images, 77, layout.unet["cross_attention_dim"], generator=generator),
    }
    if layout.pooled:
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * images)
        added = {"text_embeds": torch.randn(images, 32, generator=generator), "time_ids": sizes}
        given["added_cond_kwargs"] = added
    return given


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 1e-4), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize("shape", [(1, 8, 256, 40), (2, 5, 77, 64), (1, 1, 12, 16), (1, 20, 65, 8)])
def test_the_head_mean_is_softmax_of_the_scores_averaged_over_heads(shape, dtype, tolerance):
    query, key, value = heads(*shape, dtype=dtype)
    expected = definition(query, key)
    assert (head_mean(query, key, value) - expected).abs().max() < tolerance * expected.max()


def test_scores_beyond_the_float16_maximum_stay_exact():
    query, key, value = heads(1, 2, 64, 64, dtype=torch.float16)
    query, key = query * 70, key * 70
    assert (query.float() @ key.float().transpose(-1, -2)).abs().max() > torch.finfo(torch.float16).max
    expected = definition(query, key)
    assert (head_mean(query, key, value) - expected).abs().max() < 0.01


def test_weighted_layers_add_up_to_their_mean():
    first, second = heads(1, 2, 32, 8, seed=1), heads(1, 2, 32, 8, seed=2)
    mean = torch.zeros(1, 32, 32)
    for query, key, value in (first, second):
        add_head_mean(mean, query, key, fused_attention(query, key, value)[1], weight=0.5)
    expected = (definition(*first[:2]) + definition(*second[:2])) / 2
    assert torch.allclose(mean.double(), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_attention_is_the_stock_kernel_to_the_bit(dtype):
    query, key, value = heads(2, 4, 100, 40, dtype=dtype)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    output, log_sum = fused_attention(query, key, value)
    assert torch.equal(output, expected)
    assert torch.allclose(log_sum, log_sum_exp(query, key), atol=1e-4)


@pytest.mark.parametrize("name", ["sd1.5", "sd2.1", "sdxl", "ssd-1b", "tiny"])
def test_the_unet_answers_the_same_to_the_bit_while_it_is_watched(name):
    layout, unet = small_unet(name)
    given = inputs(layout)
    expected = unet(**given).sample
    with capture_attention(unet) as store:
        watched = unet(**given).sample
    assert torch.equal(watched, expected)
    assert len(store.maps((16, 16)).levels) == len(attention_levels(layout.unet))


def attention_names(unet):
    return [name for name, module in unet.named_modules() if name.endswith("attn1")]


def literal_levels(unet, given):
    """Every self-attention's own queries and keys, read by plain hooks, its softmax averaged with its level."""
    seen: dict[tuple[str, str], torch.Tensor] = {}
    hooks = []
    for name in attention_names(unet):
        for projection in ("to_q", "to_k"):
            module = unet.get_submodule(f"{name}.{projection}")
            keep = lambda module, args, output, place=(name, projection): seen.__setitem__(place, output)  # noqa: E731
            hooks.append(module.register_forward_hook(keep))
    unet(**given)
    for hook in hooks:
        hook.remove()
    by_cells: dict[int, list[torch.Tensor]] = {}
    for name in attention_names(unet):
        count = unet.get_submodule(name).heads
        query, key = (seen[name, part].unflatten(-1, (count, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
        by_cells.setdefault(query.shape[2], []).append(definition(query, key))
    return [torch.stack(by_cells[cells]).mean(0) for cells in sorted(by_cells, reverse=True)]


@pytest.mark.parametrize("name", ["sd1.5", "sd2.1", "sdxl", "ssd-1b"])
def test_levels_are_the_means_of_their_own_layers_finest_first(name):
    layout, unet = small_unet(name)
    given = inputs(layout, 16, 32, images=2)
    expected = literal_levels(unet, given)
    with capture_attention(unet) as store:
        unet(**given)
    maps = store.maps((16, 32))
    assert len(maps.levels) == len(expected)
    for level, literal in zip(maps.levels, expected, strict=True):
        assert (level - literal).abs().max() < 1e-6
    assert maps.grid[0] * maps.grid[1] == maps.levels[0].shape[1]
    assert maps.grid[1] == 2 * maps.grid[0]


def test_no_hook_outlives_its_block_even_when_the_pass_fails():
    _, unet = small_unet("sd1.5")
    before = dict(unet.attn_processors)
    with contextlib.suppress(RuntimeError), capture_attention(unet):
        assert unet.attn_processors != before
        raise RuntimeError
    assert unet.attn_processors == before


def test_a_block_in_which_nothing_ran_has_no_maps():
    _, unet = small_unet("sd1.5")
    with capture_attention(unet) as store:
        pass
    with pytest.raises(RuntimeError, match="no self-attention was recorded"):
        store.maps((16, 16))


@pytest.mark.parametrize("name", ["sd1.5", "sd2.1", "sdxl", "ssd-1b", "tiny"])
def test_cutting_the_unet_after_its_last_self_attention_changes_no_map(name):
    layout, unet = small_unet(name)
    given = inputs(layout)
    with capture_attention(unet) as whole:
        unet(**given)
    before = sum(weight.numel() for weight in unet.parameters())
    cut_after_last_attention(unet)
    with capture_attention(unet) as cut:
        unet(**given)
    assert sum(weight.numel() for weight in unet.parameters()) < before
    for a, b in zip(whole.maps((16, 16)).levels, cut.maps((16, 16)).levels, strict=True):
        assert torch.equal(a, b)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operator gives."""

    elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_larger_than_one_map_is_ever_made():
    query, key, value = heads(1, 8, 512, 40)
    mean = torch.zeros(1, 512, 512)
    with Largest() as largest:
        add_head_mean(mean, query, key, fused_attention(query, key, value)[1])
    assert largest.elements <= max(mean.numel(), query.numel() * 2)


COMPILED = """
import torch
from diffseg.models.unet.capture import capture_attention
from infra.embedded.checkpoints import build, narrow, whole

torch.set_num_threads(1)
torch.manual_seed(0)
unet = build(narrow(whole("tiny"))).unet.requires_grad_(False)
given = torch.randn(1, 4, 16, 16), 300, torch.randn(1, 77, 32)
with capture_attention(unet) as store:
    unet(*given)
expected = store.maps((16, 16))
compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
for attempt in range(2):
    with torch._dynamo.config.patch(error_on_recompile=attempt > 0), capture_attention(unet) as store:
        compiled(*given)
    for a, b in zip(store.maps((16, 16)).levels, expected.levels, strict=True):
        assert torch.equal(a, b)
print("equal")
"""


def run_apart(script, **environment):
    """The last line a script prints in a process without run-time type checks, which dynamo cannot trace."""
    command, variables = [sys.executable, "-c", script], {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_opaque_step_keeps_what_it_promises_to_the_compiler():
    query, key, value = heads(1, 2, 12, 8)
    torch.library.opcheck(attend_opaque, (query, key, value, torch.zeros(1, 12, 12), 0.5))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_unet_gives_the_same_maps_in_one_graph_compiled_once():
    assert run_apart(COMPILED) == "equal"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("shape", [(2, 8, 4096, 40), (1, 5, 4096, 64), (2, 20, 144, 64), (1, 8, 64, 160)])
def test_on_a_gpu_attention_is_the_stock_one(shape, dtype, tolerance):
    query, key, value = (x.cuda() for x in heads(*shape, dtype=dtype))
    output, log_sum = fused_attention(query, key, value)
    stock = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, stock, rtol=10 * tolerance, atol=10 * tolerance)  # cuDNN's plans differ
    torch.testing.assert_close(log_sum, log_sum_exp(query, key), rtol=tolerance, atol=tolerance)
