"""The stand-in CUDA device keeps CUDA's rules: tests that `tests/models/test_cuda_standin.py` runs apart."""

from collections import Counter
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

from diffseg.models.fused_attention import fused_attention
from tests.support.cuda.cuda_standin import CUDA, CudaStandIn


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here @ there.T,
        lambda here, there: there[here.long()],
        lambda here, there: here.copy_(there).index_put_((torch.tensor([0]),), there[:1]),
        lambda here, there: torch.stack([here.sum(), there.sum()]),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mixed):
    with (
        CudaStandIn(),
        pytest.raises(
            RuntimeError, match=r"tensors on cuda:0 and on the processor .* at tests/support/cuda/cuda_rules"
        ),
    ):
        mixed(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


@pytest.mark.parametrize(
    "whole",
    [
        lambda x: x @ x,
        lambda x: x[None] @ x[None],
        lambda x: torch.nn.functional.interpolate(x[None, None], size=(3, 3), mode="bilinear"),
        lambda x: torch.nn.functional.max_pool2d(x[None, None], 2),
    ],
)
def test_operators_without_a_kernel_for_whole_numbers_refuse_them(whole):
    with CudaStandIn(), pytest.raises(RuntimeError, match="not implemented for whole numbers"):
        whole(torch.ones(2, 2, device="cuda", dtype=torch.int64))


@pytest.mark.parametrize(
    ("dtype", "channels", "preferred", "taken"),
    [
        (torch.bfloat16, 64, "cudnn", "CUDNN_ATTENTION"),
        (torch.float16, 160, "cudnn", "FLASH_ATTENTION"),
        (torch.float16, 160, "efficient", "EFFICIENT_ATTENTION"),
        (torch.bfloat16, 20, "flash", "EFFICIENT_ATTENTION"),
        (torch.float32, 64, "cudnn", "EFFICIENT_ATTENTION"),
    ],
)
def test_attention_runs_on_the_fused_kernel_that_a_card_takes(dtype, channels, preferred, taken):
    with CudaStandIn(preferred):
        query = torch.ones(1, 2, 12, channels, dtype=dtype, device="cuda")
        assert SDPBackend(torch._fused_sdp_choice(query, query, query)).name == taken


@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
@pytest.mark.parametrize(("cells", "channels"), [(4096, 40), (63, 64), (256, 160)])
def test_the_installed_torch_takes_our_arguments_and_gives_log_sum_exps_in_float32(kernel, cells, channels):
    choice = mock.patch.object(torch, "_fused_sdp_choice", return_value=SDPBackend.__members__[kernel].value)
    with CudaStandIn(), FakeTensorMode(), choice:
        query = torch.empty(2, 8, cells, channels, device="cuda", dtype=torch.bfloat16)
        output, log_sum = fused_attention(query, query, query)
    assert (output.shape, output.dtype) == (query.shape, torch.bfloat16)
    assert (log_sum.shape, log_sum.dtype) == (query.shape[:3], torch.float32)


def test_what_cuda_allows_gives_the_processor_s_numbers():
    def numbers(device):
        x = torch.arange(12.0, device=device).view(3, 4)
        x[x > 6] = torch.tensor(0.5)  # a single number of the host
        y = x[torch.tensor([2, 0])].mul_(2.0)
        torch.mm(x, y.T, out=(out := x.new_empty(3, 2)))
        return [out.cpu(), x.sort().indices.cpu(), torch.tensor(x.tolist()), x.new_zeros(2, device="cpu")]

    with CudaStandIn():
        found = numbers("cuda")
    assert all(torch.equal(one, other) for one, other in zip(found, numbers("cpu"), strict=True))


def test_the_host_waits_where_it_asks_for_numbers():
    with CudaStandIn() as device:
        x = torch.ones(3, device="cuda")
        (x + 1).mul_(2)
        assert not device.syncs
        x.nonzero(), x[x > 0], x.sum().item(), x.unique(), x.cpu(), torch.equal(x, x), x.tolist(), bool(x.any())
        torch.cuda.synchronize()
    waits = Counter(what for what, _ in device.syncs.elements())
    assert waits == {
        "nonzero": 1, "a mask as index": 1, "_local_scalar_dense": 2, "_unique2": 1, "download": 2, "equal": 1,
        "synchronize": 1,
    }  # fmt: skip


def test_nothing_is_left_of_the_device_once_it_is_gone():
    before = torch.cuda.is_available(), torch.cuda.device_count()
    with CudaStandIn():
        x = torch.ones(2).to("cuda")
        assert (x.device, torch.cuda.is_available()) == (CUDA, True)
    assert (torch.cuda.is_available(), torch.cuda.device_count()) == before
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="is gone"):
        x + 1
