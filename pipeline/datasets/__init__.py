"""Datasets: a run read back as labelled samples.

Names are loaded on first use: exports read samples without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Example", "RunDataset", "RunStream"]

_HOME = dict.fromkeys(__all__, "pipeline.datasets.torch_datasets")

if TYPE_CHECKING:
    from pipeline.datasets.torch_datasets import Example, RunDataset, RunStream
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)
