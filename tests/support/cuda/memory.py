"""Memory that a block takes, counted at each operator: tensors of any device, those of "meta" without their numbers."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Bytes of storages that are made while the block runs. peak: of all that lived at once; at: when."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.peak, self.at = 0, ""

    @property
    def now(self) -> int:
        return sum(self._live.values())

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live and storage._cdata not in given:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
                if self.now > self.peak:
                    self.peak, self.at = self.now, f"{operator} {tuple(tensor.shape)}"
        return made


@contextmanager
def attention_without_numbers() -> Iterator[None]:
    """Attention takes the memory that CUDA's fused kernels and our own take, and computes nothing."""

    def fused(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
        return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)

    def plain(query: Any, *_: Any, **__: Any) -> Any:
        return torch.empty_like(query)

    def nothing(*_: Any) -> None:  # a mock would keep what it was given
        pass

    with (
        mock.patch("diffseg.models.attention.fused_attention", fused),
        mock.patch("diffseg.models.attention.add_exponentials", nothing),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", plain),
        mock.patch("diffseg.models.vit.capture.scaled_dot_product_attention", plain),
    ):
        yield
