"""Measures of partitions: published protocols, boundaries, baselines, intervals.

Names are loaded on first use, as those of `diffseg` are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "DatasetMatching",
    "ImageScore",
    "Summary",
    "View",
    "average",
    "hungarian_match",
    "score_image",
    "square_view",
    "summarise",
    "whole_view",
]

_HOME = dict.fromkeys(__all__, "diffseg.evaluation.scores") | dict.fromkeys(
    ("DatasetMatching", "hungarian_match"), "diffseg.evaluation.matching"
)

if TYPE_CHECKING:
    from diffseg.evaluation.matching import DatasetMatching, hungarian_match
    from diffseg.evaluation.scores import (
        ImageScore,
        Summary,
        View,
        average,
        score_image,
        square_view,
        summarise,
        whole_view,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)
