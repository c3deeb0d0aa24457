"""The plan of a run: its hours, cost and bytes, from the amount of input and the measured speed of one worker."""

import json
import math
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.inputs.count import Counts
from pipeline.storage import filesystem
from pipeline.storage.url import redact

EFFICIENCY = 0.95  # speed of a job's workers relative to one that never waits: what the engine is built to reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of one worker that never waits, and the bytes of labels an image; None: unknown."""

    images_per_s: float
    output_bytes: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.images_per_s) and self.images_per_s > 0):
            raise ConfigError(f"a speed is a number of images a second above 0, got {self.images_per_s:g}")
        if self.output_bytes is not None and not (math.isfinite(self.output_bytes) and self.output_bytes >= 0):
            raise ConfigError(f"an image's labels take a number of bytes of at least 0, got {self.output_bytes:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The hours, cost and bytes of a run; None: unknown. worker_hours: GPU hours where a worker has a GPU."""

    shards: int
    bytes: int
    images: int
    exact: bool  # images were counted
    error: float | None  # of their number, relative, at 95 % confidence
    worker_hours: float | None = None
    cost: float | None = None
    output_bytes: float | None = None
    deadline_hours: float | None = None
    workers: int | None = None  # that keep the deadline


def plan(
    counts: Counts,
    size: int,
    speed: Speed | None,
    *,
    price: float | None = None,
    deadline: float | None = None,
) -> Plan:
    """Plan a run. size: bytes of all shards; price: of a worker's hour; deadline: in hours.

    Raises ConfigError for a price below 0, a deadline of 0 or less, and numbers that are not finite.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"--price is what an hour of a worker costs, got {price:g}")
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise ConfigError(f"--deadline is a number of hours above 0, got {deadline:g}")
    hours = None if speed is None else counts.total / speed.images_per_s / EFFICIENCY / 3600
    return Plan(
        shards=len(counts.samples),
        bytes=size,
        images=counts.total,
        exact=counts.exact,
        error=counts.error,
        worker_hours=hours,
        cost=None if hours is None or price is None else hours * price,
        output_bytes=None if speed is None or speed.output_bytes is None else counts.total * speed.output_bytes,
        deadline_hours=deadline,
        workers=None if hours is None or deadline is None else max(1, math.ceil(hours / deadline)),
    )


def read_pilot(url: str) -> Speed:
    """Read the speed that a pilot measured. Raises ConfigError where the file is none of a pilot's."""
    try:
        entry = filesystem.stat(url)
        with filesystem.open_ranged(url, entry.size) as stream:
            figures: Any = json.loads(stream.read())
        return Speed(images_per_s=float(figures["images_per_s"]), output_bytes=float(figures["output_bytes"]))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{redact(url)}: no such file; `diffseg pilot` writes it") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{redact(url)}: no pilot.json of ours: {error}") from error
