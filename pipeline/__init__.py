"""Shards of images in, shards of labels out: bytes, records and URLs around the method in `diffseg`.

    from diffseg import SegmentConfig
    from pipeline import RunConfig, label

    summary = label(["s3://bucket/in/{000..099}.tar"], "s3://bucket/first", "sd1.5", SegmentConfig(), RunConfig())
    summary.totals, summary.faults  # what it holds; what keeps it from being complete

Names are loaded on first use. Nothing is imported before: `searchpath` has yet to put Python's own modules first.
"""

TYPE_CHECKING = False  # as checkers read it; `typing` may be a user's module at this point

__all__ = ["ConfigError", "Hooks", "PipelineError", "RunConfig", "Stopped", "Summary", "label"]

_HOME = {
    "RunConfig": "pipeline.config",
    **dict.fromkeys(("ConfigError", "PipelineError", "Stopped"), "pipeline.errors"),
    **dict.fromkeys(("Hooks", "Summary", "label"), "pipeline.labelling"),
}

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.errors import ConfigError, PipelineError, Stopped
    from pipeline.labelling import Hooks, Summary, label
else:

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
