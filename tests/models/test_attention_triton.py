"""The Triton kernel of capture without a GPU: interpreted, compiled for four architectures, or not to be had."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch

from diffseg.models import device, exponentials
from diffseg.models.exponentials import add_exponentials
from diffseg.models.unet import capture
from diffseg.models.unet.capture import rehearse
from diffseg.models.unet.loading import new_part
from diffseg.models.unet.random_weights import LAYOUTS

ROOT = Path(__file__).parents[2]
LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes of shared memory a block may have, by CUDA
HEADS = {16, 32, 40, 64, 80, 160}  # channels of a head, of every model that is known by name and its small layout
DTYPES = ("bfloat16", "float16", "float32")
linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no Triton for other systems")


def run(*command, **environment):
    """Standard output of a process without run-time type checks, which Triton cannot read through."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INTERPRETED = """
import torch
from diffseg.models.attention_triton import add_exponentials
from diffseg.models.exponentials import add_exponentials_torch

torch.manual_seed(0)
SHAPES = (2, 3, 77, 40), (1, 1, 130, 64), (1, 1, 63, 160), (1, 2, 20, 20), (1, 5, 1, 8)
for dtype in (torch.float32, torch.float16):
    for images, heads, cells, channels in SHAPES:
        packed = torch.randn(images, cells, 3, heads, channels).to(dtype)
        sliced = [packed[:, :, place].transpose(1, 2) for place in range(2)]  # one projection gave all three
        projected = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in sliced]  # one gave each
        whole = [x.contiguous() for x in sliced]
        turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in sliced]
        for query, key in (projected, sliced, whole, turned, (whole[0], sliced[1])):
            before, shift = torch.rand(images, cells, cells), torch.rand(images, heads, cells)
            mean, expected = before.clone(), before.clone()
            add_exponentials(mean, query, key, shift, 0.2)
            add_exponentials_torch(expected, query, key, shift, 0.2)
            error = ((mean - expected).abs() / expected).max()
            assert error < 5e-6, (dtype, query.shape, query.stride(), error)
print("equal")
"""


@linux
def test_the_kernel_agrees_with_the_plain_way_in_its_interpreter_whatever_the_strides():
    assert run("-c", INTERPRETED, TRITON_INTERPRET="1").split()[-1] == "equal"


ON_A_GPU = """
import torch
from diffseg.models import exponentials
from diffseg.models.attention import add_head_mean
from diffseg.models.fused_attention import fused_attention

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)):
    for images, heads, cells, channels in (
        (2, 8, 4096, 40), (1, 5, 4096, 64), (2, 20, 144, 64), (1, 8, 1020, 80), (1, 8, 64, 160), (3, 3, 12, 32)
    ):
        query, key = torch.randn(2, images, cells, heads, channels, device="cuda").to(dtype).transpose(2, 3)
        mean = torch.zeros(images, cells, cells, device="cuda")
        add_head_mean(mean, query, key, fused_attention(query, key, key)[1])
        for image in range(images):
            scores = query[image].double() @ key[image].double().transpose(-1, -2) / channels**0.5
            expected = scores.softmax(-1).mean(0)
            error = (mean[image] - expected).abs().max() / expected.max()
            assert error < tolerance, (dtype, query.shape, error)
assert not exponentials._unsupported, exponentials._logged
print("equal")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_kernel_runs_and_agrees_with_the_definition():
    assert run("-c", ON_A_GPU).split()[-1] == "equal"


def test_the_locked_triton_is_the_one_that_the_locked_torch_brings():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    assert f"triton=={pins['triton']}; sys_platform == 'linux'" in extra
    # as the CUDA wheel of this torch on PyPI has it; that of the CPU says nothing
    assert (pins["torch"], pins["triton"]) == ("2.13.0", "3.7.1")
    for requirement in requires("torch") or ():
        assert not requirement.startswith("triton=") or pins["triton"] in requirement


def compiled(*architectures):
    """Facts of every case, by architecture, dtype and channels of a head."""
    script = ROOT / "infra" / "benchmarks" / "kernel.py"
    facts = json.loads(run(str(script), "--json", "--architectures", *map(str, architectures)))
    return {(each["architecture"], each["dtype"], each["channels"]): each for each in facts}


def check(facts, architecture):
    """One compilation for every level and model, in the memory and registers there are, loading 16 bytes at a time."""
    rows, columns, warps, stages = facts["tile"]
    threads = 32 * warps
    assert facts["compilations"] == 1
    assert facts["shared"] <= LIMITS[architecture]
    assert facts["registers"] <= 255
    assert (facts["stack"], facts["spills"]) == (0, 0)
    assert facts["products"], "no tensor cores"
    assert all(name.endswith(".128") for name in facts["copies"]), "q and k are copied in pieces of less than 16 bytes"
    chunks = -(-facts["channels"] // 16)
    size = 4 if facts["dtype"] == "float32" else 2
    assert sum(facts["copies"].values()) * threads * 16 == stages * (rows + columns) * chunks * 16 * size, (
        "not all of it"
    )
    assert set(facts["loads"]) == {"LDG.E"}  # of 4 bytes: the map as it was, and the log-sum-exps of the rows
    assert sum(facts["loads"].values()) <= rows * columns / threads + rows / 8


@linux
@pytest.mark.timeout(400)  # the first time; afterwards the facts lie in DIFFSEG_CACHE until the kernel changes
def test_the_kernel_fits_without_spills_on_the_largest_and_the_smallest_gpu():
    facts = compiled(86, 90)
    assert set(facts) == {(a, dtype, channels) for a in (86, 90) for dtype in DTYPES for channels in HEADS}
    for (architecture, dtype, channels), each in facts.items():
        try:
            check(each, architecture)
        except AssertionError as error:
            raise AssertionError(f"sm_{architecture}, {dtype}, heads of {channels} channels: {each}") from error


@linux
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_kernel_fits_without_spills_on_every_architecture_and_the_table_says_so():
    facts = compiled(*LIMITS)
    assert len(facts) == len(LIMITS) * len(DTYPES) * len(HEADS)
    for (architecture, _, _), each in facts.items():
        check(each, architecture)
    table = (ROOT / "infra" / "benchmarks" / "kernel.md").read_text()
    for each in facts.values():
        start = f"| {each['channels']} | {each['dtype']} | sm_{each['architecture']} |"
        line = next(line for line in table.splitlines() if start in line)
        assert f"| {each['shared']:,} of {LIMITS[each['architecture']]:,} | {each['registers']} | 0 | 0 |" in line


class OnCuda(torch.Tensor):
    """A tensor that says it lies on a GPU, so that the kernel is asked for; its numbers are the processor's."""

    device = property(lambda self: torch.device("cuda", 0))


@pytest.fixture
def asked(monkeypatch):
    """Forget what was refused, and put a kernel in place that fails with what the test says."""
    monkeypatch.setattr(exponentials, "_unsupported", set())
    monkeypatch.setattr(exponentials, "_logged", set())

    def fail_with(error):
        calls = []

        def kernel(mean, query, key, shift, scale):
            calls.append(query.shape[-1])
            raise error

        monkeypatch.setattr(exponentials, "_kernel", lambda: kernel)
        return calls

    return fail_with


def sums(channels=8, kind=OnCuda):
    """What is added to a map of zeros."""
    generator = torch.Generator().manual_seed(channels)
    query, key = (torch.randn((1, 2, 12, channels), generator=generator) for _ in range(2))
    mean = torch.zeros(1, 12, 12)
    add_exponentials(mean, query.as_subclass(kind), key.as_subclass(kind), torch.zeros(1, 2, 12), 0.3)
    return mean.as_subclass(torch.Tensor)


def errors():
    """What Triton, the compilers it calls and the driver were seen to raise where a kernel cannot be had."""
    yield ImportError("libtriton.so: undefined symbol")
    yield RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    yield RuntimeError("0 active drivers ([]). There should only be one.")
    yield RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
    yield subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"])
    yield PermissionError(13, "Permission denied", "/home/nobody/.triton")
    yield AttributeError("module 'triton' has no attribute 'jit'")
    with contextlib.suppress(ImportError):
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        yield OutOfResources(393_216, 232_448, "shared memory")
        yield PTXASError("ptxas fatal: Value 'sm_121' is not defined for option 'gpu-name'")
        yield CompilationError("def kernel():\n    tl.nothing()\n", None, "no such thing")


@pytest.mark.parametrize("error", list(errors()), ids=lambda error: type(error).__name__)
def test_where_the_kernel_cannot_be_had_the_plain_way_is_taken_and_said_once(asked, caplog, error):
    calls = asked(error)
    for _ in range(3):
        assert torch.equal(sums(8), sums(8, torch.Tensor))
        assert torch.equal(sums(16), sums(16, torch.Tensor))
    assert calls == [8, 16]  # each head size is asked for once
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert type(error).__name__ in caplog.text
    assert "slower" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_each_reason_is_said(asked, caplog):
    from_shape = [RuntimeError("too large"), RuntimeError("much too large")]
    for channels, error in zip((8, 16), from_shape, strict=True):
        asked(error)
        sums(channels)
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == ["too large", "much too large"]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Triton Error [CUDA]: out of memory"), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")],
)
def test_a_kernel_that_finds_no_memory_is_asked_again_with_the_next_batch(asked, caplog, error):
    calls = asked(error)
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            sums()
    assert calls == [8, 8]
    assert not caplog.records


def test_a_lost_device_is_no_reason_to_go_the_plain_way(asked, caplog, monkeypatch):
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")

    def plainly(*arguments):
        raise lost

    monkeypatch.setattr(exponentials, "add_exponentials_torch", plainly)
    asked(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError) as raised:
        sums()
    assert raised.value is lost
    assert not exponentials._unsupported
    assert not caplog.records


def test_a_machine_without_triton_says_so_and_labels(asked, caplog, monkeypatch):
    exponentials._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "diffseg.models.attention_triton", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert torch.equal(sums(), sums(8, torch.Tensor))
    assert "ModuleNotFoundError" in caplog.text or "ImportError" in caplog.text


REAL = """
import logging, sys
import torch, triton
from diffseg.models.exponentials import add_exponentials
sys.path.insert(0, "infra/benchmarks")
import kernel

class OnCuda(torch.Tensor):
    device = property(lambda self: torch.device("cuda", 0))

logging.basicConfig(stream=sys.stdout)
kernel.SHARED_LIMITS[86] = int(sys.argv[1])
if sys.argv[2:] == ["card"]:
    triton.runtime.driver.set_active(kernel.NoDevice(86))
query = torch.ones(1, 2, 12, 8).as_subclass(OnCuda)
mean = torch.zeros(1, 12, 12)
for _ in range(2):
    add_exponentials(mean, query, query, torch.zeros(1, 2, 12), 0.125)
print(mean.min().item(), mean.max().item())
"""


@linux
@pytest.mark.parametrize(
    ("arguments", "reason", "added"),
    [
        (["1000", "card"], "OutOfResources: out of resource: shared memory", "8.0 8.0"),  # 2 heads, 2^1, twice
        (["101376", "card"], None, "0.0 0.0"),  # a launch on no device adds nothing
        (["101376"], "0 active drivers", "8.0 8.0"),
    ],
)
def test_what_triton_itself_refuses_goes_the_plain_way(arguments, reason, added):
    if arguments[-1] != "card" and torch.cuda.is_available():
        pytest.skip("there is a driver here")
    said = run("-c", REAL, *arguments).splitlines()
    assert said[-1] == added
    assert len(said) == (2 if reason else 1)
    assert (reason or "") in said[0]


@pytest.mark.parametrize(("name", "expected"), [("sd1.5", {40, 80, 160}), ("sdxl", {64}), ("tiny", {32})])
def test_every_head_size_of_a_model_is_tried_when_it_is_loaded(monkeypatch, name, expected):
    seen = []
    monkeypatch.setattr(capture, "add_head_mean", lambda mean, query, key, log_sum: seen.append(query))
    unet = new_part(LAYOUTS[name].unet, "meta")
    rehearse(unet, torch.device("cpu"), torch.float16)
    assert {query.shape[-1] for query in seen} == expected
    assert {query.dtype for query in seen} == {torch.float16}
    assert all(query.stride(1) == query.shape[-1] for query in seen)  # as projections leave them


def test_compiled_kernels_are_kept_where_the_weights_are_unless_the_user_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    for variable in device.COMPILERS.values():
        monkeypatch.setenv(variable, "/elsewhere")
    device._share_compiled()
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    for compiler, variable in device.COMPILERS.items():
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)
        device._share_compiled()
        assert os.environ[variable] == str(tmp_path / compiler)
    assert (tmp_path / "triton").is_dir()


def test_a_cache_that_cannot_be_written_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "file"))
    for variable in device.COMPILERS.values():
        monkeypatch.delenv(variable, raising=False)
    device._share_compiled()
    assert not {*device.COMPILERS.values()} & {*os.environ}
