"""A CUDA device for machines without one: tensors say `cuda:0`, their numbers lie on the processor.

    with CudaStandIn("cudnn") as device:
        DiffSeg.from_pretrained("tiny").segment(images)  # picks the device as it would pick a real one
    device.syncs  # (what made the host wait, file:line) -> times

It holds code to CUDA's rules: tensors of two devices do not mix, operators without a kernel for whole numbers refuse
them, and attention comes from the kernel that a GPU would choose (`cuda_attention`). It counts launches, waits of the
host, and copies up and down, each with the line of this project that asked for them. It knows nothing of time, memory
or rounding. It needs a CPU build of torch, and a process of its own: while it is there, everything in it sees it.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.support.cuda import cuda_attention
from tests.support.cuda.cuda_attention import Kernel

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[3]
OURS = tuple(f"{ROOT}/{folder}/" for folder in ("diffseg", "pipeline", "jobs", "tests"))
DEVICE_TYPES = 21  # of c10::DeviceType
CUDA_GUARD, META_GUARD = 1, 14  # places among them
VIRTUAL_FUNCTIONS = 32  # of a device guard, at most

FACTORIES = (  # make tensors out of nothing, straight in their final size
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "randperm"),
    *("eye", "eye.m", "tril_indices", "triu_indices"),
)
FLOATS_ONLY = {  # no CUDA kernel takes whole numbers; a processor's does
    *("mm", "bmm", "addmm", "addmv", "mv", "dot", "baddbmm", "convolution", "_cdist_forward"),
    *("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "upsample_linear1d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
ASKING = {  # the host waits for a number before it can go on
    *("nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal", "_local_scalar_dense"),
    "bincount",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # take indices from the host as well, and wait


class CudaTensor(torch.Tensor):
    """A tensor that says it lies on a GPU. numbers: where they are in truth."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> "CudaTensor":
        with torch.inference_mode(numbers.is_inference()):  # a view of a tensor from outside is none of inference mode
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                numbers.shape,
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                device=CUDA,
            )
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: object) -> None:
        """Memory here is freed by Python alone."""

    def __repr__(self) -> str:  # type: ignore[override] # torch's takes contents too
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):  # type: ignore[override] # as torch documents it
        return CudaStandIn.present().run(operator, args, kwargs or {})


class CudaStandIn:
    """The device. kernel: what attention of half precision runs on, as the card decides; float32 has the efficient one.

    launches, syncs: by operator or reason, and place. copies: "upload" or "download", and place. uploads, downloads: by
    place, in bytes.
    """

    _present: "CudaStandIn | None" = None

    def __init__(self, kernel: Kernel = "flash") -> None:
        self.kernel = kernel
        self.launches: Counter[tuple[str, str]] = Counter()
        self.syncs: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self._lost: Exception | None = None

    @staticmethod
    def present() -> "CudaStandIn":
        if CudaStandIn._present is None:
            raise RuntimeError("the stand-in CUDA device is gone")
        return CudaStandIn._present

    def __enter__(self) -> "CudaStandIn":
        assert not torch.backends.cuda.is_built(), "a CUDA build of torch has the real operators"
        assert CudaStandIn._present is None, "there is one device"
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(CudaStandIn, "_present", self))
            stack.enter_context(mock.patch.multiple(torch.cuda, **self._answers()))
            library = torch.library.Library("aten", "IMPL")
            stack.callback(library._destroy)
            for name in FACTORIES:
                library.impl(name, _factory(name), "CUDA")
            stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pinned))
            stack.enter_context(mock.patch.object(torch, "empty", _empty(torch.empty)))
            library.impl("copy_", self._copy_, "CUDA")  # `torch.tensor` copies by a way past __torch_dispatch__
            _set_guard(stack)
            overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
            stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
            torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper cannot be filled with another
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.close()

    def lose(self, error: Exception) -> None:
        """From now on everything that touches the device raises, as after a failure that CUDA calls sticky."""
        self._lost = error

    def _wait(self, why: str) -> None:
        self._check_alive()
        self.syncs[why, place()] += 1

    def _answers(self) -> dict[str, Any]:
        """What torch.cuda says while the device is there."""
        properties = SimpleNamespace(
            name="CUDA stand-in", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, uuid="stand-in",
            shared_memory_per_block_optin=232448,
        )  # fmt: skip
        return {
            "_lazy_init": lambda: None,
            "init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_properties": lambda device=None: properties,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: properties.name,
            "mem_get_info": lambda device=None: (76 << 30, 80 << 30),
            "empty_cache": lambda: self._wait("empty_cache"),
            "synchronize": lambda device=None: self._wait("synchronize"),
            "Stream": Stream,
            "current_stream": lambda device=None: Stream(),
            "stream": nullcontext,
        }

    def run(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operator of which at least one argument lies here."""
        known = _facts(operator)
        if known.composite:  # in inference mode torch leaves it to us to take it apart
            return operator.decompose(*args, **kwargs)
        self._check_alive()
        copies: dict[str, Callable[..., Any]] = {"copy_": self._copy_, "_to_copy": self._to_copy}
        if known.name in copies:
            return copies[known.name](*args, **kwargs)
        tensors = list(_tensors((args, *kwargs.values())))
        self._check_devices(known, args, tensors)
        if known.name in FLOATS_ONLY and not all(tensor.is_floating_point() for tensor in tensors):
            raise RuntimeError(f'"{known.name}_cuda" not implemented for whole numbers, at {place()}')
        if not known.looks:
            self._note(known.name, args, kwargs)
        device = kwargs.get("device")
        given = {key: torch.device("cpu") if key == "device" else _numbers(value) for key, value in kwargs.items()}
        if known.name in cuda_attention.OPERATORS:
            operator, given = cuda_attention.OPERATORS[known.name], {**given, "kernel": self.kernel}
        result = operator(*_numbers(args), **given)
        if known.written is not None:
            written = [kwargs[name] if name in kwargs else args[at] for at, name in known.written]
            if any(tensor.shape != tensor.numbers.shape for tensor in written):
                raise NotImplementedError(f"{known.name} resizes a tensor that it was given, at {place()}")
            return written[0] if known.returns == 1 else tuple(written) if known.returns else None
        if known.name == "_local_scalar_dense" or (device is not None and torch.device(device).type != "cuda"):
            return result
        return _on_device(result)

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _check_devices(self, known: "_Facts", args: Sequence[Any], tensors: list[torch.Tensor]) -> None:
        """CUDA's operators take tensors of the host in few places: single numbers in arithmetic, and indices."""
        foreign = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
        if foreign and known.name in INDEXING and isinstance(args[0], CudaTensor):
            foreign = [value for value in args[2:3] if not isinstance(value, CudaTensor) and value.dim()]
        elif foreign and known.pointwise:
            foreign = [tensor for tensor in foreign if tensor.dim()]
        if foreign:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in foreign)
            raise RuntimeError(f"{known.name}: tensors on cuda:0 and on the processor ({shapes}), at {place()}")

    def _note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A launch, and what the host waits for."""
        here = place()
        self.launches[name, here] += 1
        if name in ASKING:
            self.syncs[name, here] += 1
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.syncs["repeat_interleave without output_size", here] += 1
        elif name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.syncs["a mask as index", here] += 1
            if any(not isinstance(index, CudaTensor) for index in indices):
                self.syncs["an index of the host", here] += 1

    def _copied(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        """Note a copy, and that the host waits for one between it and the device unless its memory is pinned."""
        here = place()
        size = source.numel() * source.element_size()
        match isinstance(target, CudaTensor), isinstance(source, CudaTensor):
            case True, True:
                self.launches["copy_", here] += 1
            case True, False:
                self.uploads[here] += size
                self.copies["upload", here] += 1
                if not (non_blocking and getattr(source, "pinned", False)):
                    self.syncs["upload", here] += 1
            case False, True:
                self.downloads[here] += size
                self.copies["download", here] += 1
                self.syncs["download", here] += 1

    def _copy_(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        self._copied(target, source, non_blocking)
        _numbers(target).copy_(_numbers(source))
        return target

    def _to_copy(self, source: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        device = kwargs.pop("device", None) or source.device
        kwargs.pop("pin_memory", None)
        non_blocking = kwargs.pop("non_blocking", False)
        numbers = aten._to_copy(_numbers(source), **kwargs)
        made = CudaTensor(numbers) if torch.device(device).type == "cuda" else numbers
        self._copied(made, source, non_blocking)
        return made


class Event(torch.cuda.Event):
    """A point that is passed as soon as it is made."""

    def __new__(cls) -> "Event":
        return object.__new__(cls)

    def __init__(self) -> None:
        pass


class Stream:
    """Everything runs at once here, so that no stream waits for another."""

    cuda_stream = 0

    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    def record_event(self) -> torch.cuda.Event:
        CudaStandIn.present()._check_alive()
        return Event()

    def wait_event(self, event: object) -> None:
        CudaStandIn.present()._check_alive()

    wait_stream = wait_event


def place() -> str:
    """File and line of this project that the running operator comes from."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(OURS) and path != __file__:
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@dataclass(frozen=True, slots=True)
class _Facts:
    """Of an operator. looks: at its arguments, without a launch. written: places and names of the
    arguments that it changes and returns; None where it returns something else.
    """

    name: str
    composite: bool
    pointwise: bool
    looks: bool
    written: tuple[tuple[int, str], ...] | None
    returns: int


@cache
def _facts(operator: Any) -> _Facts:
    schema = operator._schema
    name = schema.name.removeprefix("aten::")
    changed = [
        (at, each.name) for at, each in enumerate(schema.arguments) if each.alias_info and each.alias_info.is_write
    ]
    same = all(each.alias_info and each.alias_info.is_write for each in schema.returns)
    return _Facts(
        name,
        composite=operator._can_decompose(),
        pointwise=torch.Tag.pointwise in operator.tags,
        looks=operator.is_view or name in ("detach", "alias", "lift_fresh", "_fused_sdp_choice"),
        written=tuple(changed) if changed and same else None,
        returns=len(schema.returns),
    )


def _pinned(source: torch.Tensor) -> torch.Tensor:
    made: Any = source.clone()
    made.pinned = True  # what torch knows by asking the driver
    return made  # type: ignore[no-any-return]


def _empty(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.empty`, which can pin memory: a CPU build refuses."""

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        made: Any = own(*args, **kwargs)
        if pin_memory:
            made.pinned = True
        return made  # type: ignore[no-any-return]

    return empty


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """All in arguments or results, in their order; torch nests them in lists and tuples."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)


def _numbers(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return [_numbers(branch) for branch in tree]
    return tree.numbers if isinstance(tree, CudaTensor) else tree


def _on_device(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return tuple(_on_device(branch) for branch in tree)
    return CudaTensor(tree) if isinstance(tree, torch.Tensor) else tree


def _factory(name: str) -> Callable[..., CudaTensor]:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> CudaTensor:
        CudaStandIn.present()._check_alive()
        return CudaTensor(operator(*args, **{**kwargs, "device": torch.device("cpu")}))

    return make


def _set_guard(stack: ExitStack) -> None:
    """Have C++ code learn that cuda:0 is current, which a CPU build cannot tell it.

    c10 keeps an object with virtual functions for each type of device. That of "meta" does nothing, which is right for
    a single device but for two functions: `exchangeDevice` and `getDevice`, the second and the third, name the device.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    functions = ctypes.c_void_p.from_address(guards[META_GUARD] or 0).value
    own = (ctypes.c_void_p * VIRTUAL_FUNCTIONS).from_buffer_copy(
        (ctypes.c_void_p * VIRTUAL_FUNCTIONS).from_address(functions or 0)
    )
    current = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_uint16)(lambda this, device: CUDA_GUARD)
    own[1] = own[2] = ctypes.cast(current, ctypes.c_void_p).value  # c10::Device: a byte of type, a byte of index
    guard = ctypes.c_void_p(ctypes.addressof(own))
    stack.callback(lambda *alive: guards.__setitem__(CUDA_GUARD, None), own, current, guard)
    guards[CUDA_GUARD] = ctypes.addressof(guard)
