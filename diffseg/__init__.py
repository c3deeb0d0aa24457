"""Segments of images from the self-attention of a diffusion model (DiffSeg, arXiv 2308.12469).

Input: pixels. Output: label maps. This package knows neither the files of a run nor shards nor Ray.
Names are loaded on first use, so that a command which only needs the configuration imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["AttentionError", "DiffSeg", "Segment", "SegmentConfig", "Segmentation", "segment_attention"]

_HOME = {
    "AttentionError": "diffseg.types",
    "DiffSeg": "diffseg.segmenter",
    "Segment": "diffseg.types",
    "SegmentConfig": "diffseg.config",
    "Segmentation": "diffseg.types",
    "segment_attention": "diffseg.segmenter",
}

if TYPE_CHECKING:
    from diffseg.config import SegmentConfig
    from diffseg.segmenter import DiffSeg, segment_attention
    from diffseg.types import AttentionError, Segment, Segmentation
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)
