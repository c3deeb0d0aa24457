"""What a model's exception says: memory, the device, the setup or the sample; and what a run does about it.

The device is told what to answer here; the stand-in CUDA device fails in `cuda_cases`.
"""

import subprocess

import numpy as np
import pytest
import torch
import torch._inductor.exc

from diffseg.types import AttentionError
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import ConfigError, OutOfMemory, Stopped, WorkerLost, WouldRepeat
from pipeline.messages import ShardTask
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker import device_errors
from pipeline.worker.build import WorkerSettings, build_worker
from pipeline.worker.device_errors import Cause, cause_of
from pipeline.worker.labeling import AdaptiveBatches
from pipeline.worker.worker import Worker
from tests.conftest import a_run


class AcceleratorError(RuntimeError):
    """Named as torch names its own, which versions before 2.8 do not have."""


class OutOfResources(Exception):
    """Named as old versions of Triton name theirs, which has no TritonError among its bases."""


ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call."
LOST = [
    RuntimeError(f"CUDA error: an illegal memory access was encountered{ADVICE}"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: device-side assert triggered"),
    torch.AcceleratorError(f"CUDA error: device-side assert triggered{ADVICE}"),
    AcceleratorError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    torch._inductor.exc.InductorError(RuntimeError("CUDA error: misaligned address"), None),
]
UNCLEAR = [  # the device knows
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    RuntimeError("CUDA error: invalid configuration argument"),
    torch.AcceleratorError("CUDA error: invalid configuration argument"),
    AcceleratorError("CUDA error: unknown error"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("NCCL Error 1: unhandled cuda error"),
]
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    MemoryError("Unable to allocate 2.00 GiB for an array"),
]
SETUP = [
    RuntimeError(f"CUDA error: no kernel image is available for execution on the device{ADVICE}"),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    RuntimeError("CUDA error: the provided PTX was compiled with an unsupported toolchain."),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    RuntimeError("CUDA error: CUDA driver version is insufficient for CUDA runtime version"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver"),
    RuntimeError("No CUDA GPUs are available"),
    AssertionError("Torch not compiled with CUDA enabled"),
    OutOfResources("out of resource: shared memory, Required: 393216, Hardware limit: 232448."),
    torch._inductor.exc.InductorError(RuntimeError("ptxas failed"), None),
    torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no ninja"), None),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"]),
]
SAMPLE = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1"),
    ZeroDivisionError("division by zero"),
    ValueError("the sides of the model's input must be multiples of 64, got 3 x 4"),
]


@pytest.fixture
def device(monkeypatch):
    """A CUDA device in use, to be told whether it answers."""

    class Stub:
        answers = True
        emptied = 0

        def synchronize(self):
            if not self.answers:
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")

        def empty_cache(self):
            self.emptied += 1

    stub = Stub()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", stub.synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", stub.empty_cache)
    return stub


def by_text(error):
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("error", [*LOST, *UNCLEAR, *MEMORY, *SETUP, *SAMPLE], ids=by_text)
def test_whatever_is_raised_a_device_that_does_not_answer_is_lost(device, error):
    device.answers = False
    assert cause_of(error) is Cause.DEVICE


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        *((error, Cause.DEVICE) for error in LOST),
        *((error, Cause.SAMPLE) for error in (*UNCLEAR, *SAMPLE)),
        *((error, Cause.MEMORY) for error in MEMORY),
        *((error, Cause.SETUP) for error in SETUP),
    ],
    ids=by_text,
)
def test_a_device_that_answers_leaves_the_sample_to_blame_unless_the_message_says_more(device, error, cause):
    assert cause_of(error) is cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        *((error, Cause.DEVICE) for error in (*LOST, *UNCLEAR)),
        *((error, Cause.SAMPLE) for error in SAMPLE),
        *((error, Cause.MEMORY) for error in MEMORY),
        *((error, Cause.SETUP) for error in SETUP),
    ],
    ids=by_text,
)
def test_where_there_is_no_device_to_ask_the_message_is_believed(error, cause):
    assert cause_of(error) is cause


def test_memory_that_a_processor_does_not_have_is_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert cause_of(raised.value) is Cause.MEMORY


def test_errors_of_the_installed_triton_are_of_the_setup():
    errors = pytest.importorskip("triton.runtime.errors")
    assert cause_of(errors.OutOfResources(393216, 232448, "shared memory")) is Cause.SETUP
    assert cause_of(errors.PTXASError("internal error")) is Cause.SETUP


class Model(FakeSegmenter):
    """Raises for every batch that holds the image numbered `bad`, or for every batch larger than `most`."""

    def __init__(self, error, bad=None, most=9, device=None):
        super().__init__(batch_size=4)
        self.error, self.bad, self.most, self.device = error, bad, most, device
        self.tried = []

    def segment(self, images):
        self.tried.append(len(images))
        numbers = [int((image.mean((0, 2)) < 128).sum()) - 4 for image in images]
        if self.bad in numbers or len(images) > self.most:
            if self.device:
                self.device.answers = False
            raise self.error
        return super().segment(images)


def statuses(ledger):
    return [row["status"] for row in ledger.rows()]


@pytest.mark.parametrize("error", [LOST[1], LOST[4], *UNCLEAR[:2], UNCLEAR[4], SAMPLE[0]], ids=by_text)
def test_a_window_in_which_the_device_was_lost_is_not_committed_though_it_was_the_last_sample(ledger, device, error):
    shard = next(iter(ledger.shards.values()))
    with pytest.raises(WorkerLost, match=r"^device failed: [^\n]*$"):
        list(Worker(ledger, Model(error, bad=7, device=device)).run([ShardTask(shard)]))
    assert statuses(ledger) == [OK] * 4


@pytest.mark.parametrize("error", [UNCLEAR[0], UNCLEAR[4], UNCLEAR[6]], ids=by_text)
def test_a_sample_that_a_sound_device_refuses_costs_its_own_row_alone(ledger, device, error):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, Model(error, bad=7)).run([ShardTask(shard)]))
    assert statuses(ledger) == [OK] * 7 + ["model_error"] + [OK] * 2


@pytest.mark.parametrize("error", [MEMORY[0], MEMORY[4], MEMORY[7], MEMORY[-1]], ids=by_text)
def test_a_batch_without_room_is_halved_once_the_device_has_given_back_what_it_kept(ledger, device, error):
    shard = next(iter(ledger.shards.values()))
    model = Model(error, most=2)
    worker = Worker(ledger, model)
    list(worker.run([ShardTask(shard)]))
    assert statuses(ledger) == [OK] * 10
    assert (device.emptied, worker.segmenter.batch_size) == (1, 2)
    assert model.tried == [4, 2, 2, 2, 2, 2]


def test_an_image_without_room_though_it_is_alone_gets_a_row_that_says_so(ledger):
    shard = next(iter(ledger.shards.values()))
    list(Worker(ledger, Model(MEMORY[0], bad=3)).run([ShardTask(shard)]))
    [row] = [row for row in ledger.rows() if row["status"] != OK]
    assert (row["index"], row["status"]) == (3, "model_error")
    assert row["error"].startswith("OutOfMemory: CUDA out of memory")


@pytest.mark.parametrize("error", [SETUP[0], SETUP[9], SETUP[-1]], ids=by_text)
def test_what_no_other_worker_would_pass_stops_the_run_in_one_line(shards, tmp_path, error):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards[:1])
    pool = LocalPool(lambda: Worker(ledger, Model(error, bad=6)))
    with pytest.raises(WouldRepeat, match="install a torch that fits") as stopped:
        drive(ledger, pool, ledger.unfinished(), Counters())
    pool.close()
    assert "\n" not in str(stopped.value)
    assert statuses(ledger) == [OK] * 4


def test_workers_in_the_driver_s_process_are_not_started_again_on_a_device_that_is_lost_to_it(shards, tmp_path, device):
    ledger, made = Ledger.start(str(tmp_path / "run"), a_run(), shards[:1]), []

    def build():
        made.append(Worker(ledger, Model(UNCLEAR[0], bad=6, device=device)))
        return made[-1]

    pool = LocalPool(build)
    with pytest.raises(Stopped, match="lost to this process"):
        drive(ledger, pool, ledger.unfinished(), Counters())
    pool.close()
    assert len(made) == 1
    device.answers = True

    pool = LocalPool(lambda: Worker(ledger, FakeSegmenter()))
    drive(ledger, pool, ledger.unfinished(), Counters())
    pool.close()
    assert statuses(ledger) == [OK] * 10
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []


@pytest.mark.parametrize("error", [*SETUP[4:9], RuntimeError("CUDA unknown error")], ids=by_text)
def test_a_worker_that_was_given_a_gpu_does_not_label_on_the_processor(ledger, monkeypatch, error):
    def init():
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(ConfigError, match=r"a GPU that torch .* cannot use: .*`--device cpu`"):
        build_worker(WorkerSettings(ledger.store.url, "tiny", gpu=True))


@pytest.mark.parametrize("error", [AttentionError("NaN", (0,)), ConfigError("no"), WorkerLost("CUDA out of memory")])
def test_our_own_errors_pass_as_they_are(device, error):
    device.answers = False
    with pytest.raises(type(error)) as raised:
        AdaptiveBatches(Model(error, most=0)).segment([np.zeros((16, 24, 3), np.uint8)] * 2)
    assert raised.value is error


def test_out_of_memory_may_pass_with_another_attempt():
    assert OutOfMemory.retryable
    assert device_errors.device_answers() is None, "no device is in use here"
