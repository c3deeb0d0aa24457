"""The cause of an exception that a model raised: memory was short, the device is lost, the setup is wrong, or the model
cannot take the sample.

Classes tell little. CUDA's failures are `torch.AcceleratorError` from torch's own calls (and RuntimeError before torch
2.8), but RuntimeError from cuBLAS, cuDNN and Triton, for a lost device and for a refused argument alike. After a
failure of the first kind every later call fails too ("sticky" in CUDA's manual), so the device is asked.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from diffseg.types import AttentionError
from pipeline.errors import ConfigError, OutOfMemory, PipelineError, WorkerLost

logger = logging.getLogger(__name__)


class Cause(Enum):
    """Why a model raised."""

    MEMORY = auto()  # fewer images may fit
    DEVICE = auto()  # lost to this process; another process may do better
    SETUP = auto()  # torch, driver, compiler and card do not fit each other: no image would fare better
    SAMPLE = auto()


# By the name of the exception's class or of any base: a class of a library that is not installed, or that this version
# does not have yet, cannot be imported.
CLASSES = {
    "MemoryError": Cause.MEMORY,
    "OutOfMemoryError": Cause.MEMORY,  # torch, torch.cuda
    "TritonError": Cause.SETUP,
    "OutOfResources": Cause.SETUP,  # of Triton, where no TritonError is among its bases
    "CompilationError": Cause.SETUP,  # the same
    "TorchDynamoException": Cause.SETUP,  # and all of torch.compile behind it
    "OperatorIssue": Cause.SETUP,  # of torch._inductor
    "CppCompileError": Cause.SETUP,  # the same
    "CalledProcessError": Cause.SETUP,  # a compiler that Triton ran
    "AcceleratorError": Cause.DEVICE,
}
# By message, whatever the class, where the device still answers or cannot be asked.
LOST = re.compile(  # CUDA's wording of the errors after which a process can do nothing more on its device
    "an illegal memory access was encountered|an illegal instruction was encountered|device-side assert triggered"
    "|unspecified launch failure|misaligned address|invalid program counter|hardware stack error"
    "|operation not supported on global/shared address space|the launch timed out and was terminated"
    "|uncorrectable (ECC|NVLink) error"
)
SETUP = re.compile(
    "no kernel image is available|device kernel image is invalid|unsupported toolchain|driver version is insufficient"
    "|driver on your system is too old|[Uu]nsupported display driver|forward compatibility was attempted"
    "|cudaGetDeviceCount|No CUDA GPUs are available|no CUDA-capable device|no NVIDIA driver"
    "|not compiled with CUDA|not linked with support for cuda"
    "|Failed to find C compiler|active drivers"  # Triton's
)
MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|not enough memory|_ALLOC_FAILED|_ALLOCATION_FAILED"
    "|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED"  # how creating a handle fails where it finds no room
)
DEVICE = re.compile(  # wording for a lost device and for a refused argument alike: a device that answers is not lost
    r"(CUDA|cuDNN|cuFFT|NCCL|HIP)( \w+)? [Ee]rror|CU[A-Z]+_STATUS_|Triton Error \["
)


def cause_of(error: Exception) -> Cause:
    """The cause of an exception that came out of a model. Asks the device, where this process uses one."""
    text = str(error)
    answers = device_answers()
    if answers is False or LOST.search(text):
        return Cause.DEVICE
    if SETUP.search(text):
        return Cause.SETUP
    if MEMORY.search(text):
        return Cause.MEMORY
    names = (kind.__name__ for kind in type(error).__mro__)
    cause = next((CLASSES[name] for name in names if name in CLASSES), Cause.SAMPLE)
    if cause is Cause.SAMPLE and DEVICE.search(text):
        cause = Cause.DEVICE
    return Cause.SAMPLE if cause is Cause.DEVICE and answers else cause


def device_answers() -> bool | None:
    """Whether the CUDA device of this process still works; None where the process uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except Exception as error:  # an exception of any class is the answer
        logger.exception("the device does not answer: %s", error)
        return False
    return True


def release_memory() -> None:
    """Give back the memory that torch keeps after use: fragments of it could make the next try fail."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


@contextmanager
def loading_errors() -> Iterator[None]:
    """As `device_errors`, for a block that loads a model. Raises ConfigError too where the model is of no use."""
    try:
        with device_errors():
            yield
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


@contextmanager
def device_errors() -> Iterator[None]:
    """Translate the exceptions of a block that uses a model.

    Raises OutOfMemory; WorkerLost where the device is lost to this process; ConfigError where torch, driver, compiler
    and GPU do not fit each other; every other exception unchanged.
    """
    try:
        yield
    except (AttentionError, PipelineError):
        raise
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        text = f"{type(error).__name__}: {line}"
        match cause_of(error):
            case Cause.MEMORY:
                raise OutOfMemory(line or text) from error
            case Cause.DEVICE:
                raise WorkerLost(f"device failed: {text}") from error
            case Cause.SETUP:
                raise ConfigError(
                    f"torch cannot run the model on this machine: {text}; install a torch that fits its GPU and "
                    "driver, and leave out `compile` where there is no compiler"
                ) from error
        raise
