"""Measures of partitions: published protocols, boundaries, baselines, intervals.

Names are loaded on first use, as those of `diffseg` are.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["DatasetMatching", "hungarian_match"]

if TYPE_CHECKING:
    from diffseg.evaluation.matching import DatasetMatching, hungarian_match
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from diffseg.evaluation import matching

        return getattr(matching, name)
